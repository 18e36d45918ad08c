"""The bench of what a step costs outside the runner."""

from __future__ import annotations

from bench.steps import run


def test_every_figure_is_there() -> None:
    """A few steps are enough to see that all three kinds are made."""
    result = run(5)
    assert result["name"] == "steps"
    assert result["value"] > 0
    assert result["peer_value"] > 0
    assert result["together"] > 0
