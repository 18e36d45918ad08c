"""The simulate command, from options to JSON and a picture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from shoal.errors import UsageError
from simulator.__main__ import make_app

SMALL = ["--servers", "20", "--blocks", "8", "--hours", "0.5"]


def test_json_has_the_report() -> None:
    """Coverage, throughput, moves and routes by name."""
    result = CliRunner().invoke(make_app(), [*SMALL, "--json"])
    report = json.loads(result.stdout)
    assert report["coverage_worst"] == 1.0
    assert {"weakest_share", "moves_per_server_hour", "route_s"} <= set(report)


@pytest.mark.parametrize("ending", ["svg", "png"])
def test_a_picture_is_drawn(tmp_path: Path, ending: str) -> None:
    """Into the file that was named."""
    pytest.importorskip("matplotlib")
    path = tmp_path / f"run.{ending}"
    result = CliRunner().invoke(make_app(), [*SMALL, "--plot", str(path)])
    assert result.exit_code == 0
    assert path.stat().st_size > 5000


def test_other_endings_are_refused(tmp_path: Path) -> None:
    """The error says what can be written."""
    result = CliRunner().invoke(make_app(), [*SMALL, "--plot", str(tmp_path / "run.gif")])
    assert isinstance(result.exception, UsageError)
