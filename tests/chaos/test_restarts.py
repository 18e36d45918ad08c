"""Every server of a swarm is restarted, one after another, under clients that ask for replies all the time."""

from __future__ import annotations

import os

import pytest

from bench.restarts import LAYOUTS, restarted

ROUNDS = int(os.environ.get("SHOAL_RESTART_ROUNDS", "0"))
"""`make chaos` makes more of them, in every layout."""


@pytest.mark.timeout(180 + 240 * max(1, ROUNDS))
@pytest.mark.parametrize("layout", LAYOUTS if ROUNDS else ["thirds"])
async def test_a_rolling_restart(layout: str) -> None:
    """Four clients get the same replies again and again, and no error; servers come back as they were."""
    found = await restarted(LAYOUTS[layout], max(1, ROUNDS))
    assert found.errors == []
    assert found.wrong == 0
    assert found.restarts == len(LAYOUTS[layout]) * max(1, ROUNDS)
    assert (set(found.exit_codes), found.moved) == ({0}, 0)
