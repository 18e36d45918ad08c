"""Real servers are damaged in the middle of replies; the replies are those of an undisturbed run, token for token."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shoal.bench.heal import KINDS, perform

SEED = int(os.environ.get("SHOAL_CHAOS_SEED", "1"))
RUNS = int(os.environ.get("SHOAL_CHAOS_RUNS", str(len(KINDS))))
"""`make chaos` runs more of them."""


@pytest.mark.timeout(60 + 20 * RUNS)
async def test_replies_survive_damage(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each kind of damage once, at random tokens, in up to three sessions at once."""
    monkeypatch.setenv("SHOAL_MODELS", str(tiny_model.parent))
    runs = await perform(str(tiny_model), range(SEED, SEED + RUNS))
    assert {run.kind for run in runs} == set(KINDS[:RUNS])
    assert [run for run in runs if not run.identical] == []
    assert [run for run in runs if run.repeated_rows] == []
