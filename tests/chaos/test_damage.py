"""Real servers are damaged in the middle of replies; the replies are those of an undisturbed run, token for token."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bench.fault_runs import KINDS, perform
from bench.heal import BARE_KINDS

SEED = int(os.environ.get("SHOAL_CHAOS_SEED", "1"))
RUNS = int(os.environ.get("SHOAL_CHAOS_RUNS", "0"))
"""`make chaos` runs more of them, over every set of transports."""

FEW = {None: KINDS, "tls": ("kill", "freeze"), "iroh": ("kill",)}
"""Without a number: each kind of damage once with both transports, as commands have them, and what tells them apart alone."""

MANY = {None: KINDS, "tls": KINDS, "iroh": BARE_KINDS}


@pytest.mark.timeout(60 + 20 * max(RUNS, len(KINDS)))
@pytest.mark.parametrize("transport", FEW, ids=["raced", "tls", "iroh"])
async def test_replies_survive_damage(transport: str | None, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each kind of damage at random tokens, in up to three sessions at once."""
    monkeypatch.setenv("SHOAL_MODELS", str(tiny_model.parent))
    kinds = (MANY if RUNS else FEW)[transport]
    count = max(1, RUNS // len(FEW)) if RUNS else len(kinds)
    runs = await perform(str(tiny_model), range(SEED, SEED + count), kinds=kinds, transport=transport)
    assert {run.kind for run in runs} == set(kinds[:count])
    assert [run for run in runs if not run.identical] == []
    assert [run for run in runs if run.repeated_rows] == []
