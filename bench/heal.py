"""`python -m bench heal`: replies whose servers fail in the middle, against the same replies left in peace."""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from bench.fault_runs import KINDS, Run, make_tiny, perform
from bench.report import commit, hardware
from shoal.model.weights.model_source import demo_model_path

BARE_KINDS = ("kill", "freeze", "partition", "corrupt")
"""What tells one transport from another: how a death is noticed, or is not, and what becomes of a wrong byte."""


class FaultShare(NamedTuple):
    """A share of the runs (their last part takes the rest), in a swarm of its own."""

    share: float
    demo: bool
    transport: str | None
    kinds: Sequence[str] = KINDS


PARTS = (
    FaultShare(0.42, False, None),
    FaultShare(0.42, False, "tls"),
    FaultShare(0.06, False, "iroh", BARE_KINDS),
    FaultShare(0.1, True, None),
)


def run(runs: int, seed: int = 1, progress: Callable[[Run], None] | None = None) -> dict[str, Any]:
    """So many disturbed runs, each kind of damage in turn, most on a tiny checkpoint; a seed names the same runs again."""
    return asyncio.run(_run(runs, seed, progress or _show))


def _show(one: Run) -> None:
    verdict = "same tokens" if one.identical else f"DIFFERENT {one.error}"
    what = f"{one.seed} {one.transport:8} {one.kind:11} after {one.at_token:2} tokens, {one.sessions} sessions"
    print(f"{what}: {verdict}, {one.pause_s:.2f} s", file=sys.stderr, flush=True)


async def _run(runs: int, seed: int, progress: Callable[[Run], None]) -> dict[str, Any]:
    began = time.monotonic()
    done: list[Run] = []
    with tempfile.TemporaryDirectory() as folder:
        tiny = Path(folder) / "tiny"
        make_tiny(tiny)
        os.environ["SHOAL_MODELS"] = folder
        for part, count in zip(PARTS, _counts(runs), strict=True):
            if count:
                seeds = range(seed * 1000 + len(done), seed * 1000 + len(done) + count)
                model = str(demo_model_path() if part.demo else tiny)
                at = len(done) % len(part.kinds)  # where the round of kinds has come to
                done += await perform(model, seeds, progress, (*part.kinds[at:], *part.kinds[:at]), part.transport)
    return {
        "name": "heal",
        "runs": len(done),
        "identical": sum(one.identical for one in done),
        "kinds": {kind: _summary([one for one in done if one.kind == kind]) for kind in KINDS},
        "transports": {
            name: _by_transport([one for one in done if one.transport == name])
            for name in dict.fromkeys(one.transport for one in done)
        },
        "failed": [msgspec.to_builtins(one) for one in done if not one.identical],
        "total_s": time.monotonic() - began,
        "hardware": hardware(),
        "commit": commit(),
    }


def _counts(runs: int) -> list[int]:
    """How many runs each part gets."""
    counts = [round(runs * part.share) for part in PARTS[:-1]]
    return [*counts, max(0, runs - sum(counts))]


def _summary(runs: list[Run]) -> dict[str, Any]:
    pauses = sorted(one.pause_s for one in runs)
    found = sorted(one.detection_s for one in runs if one.detection_s is not None)
    return {
        "runs": len(runs),
        "identical": sum(one.identical for one in runs),
        "pause_s": _spread(pauses),
        "detection_s": _spread(found),
        "replayed_rows": sum(one.replayed_rows for one in runs),
        "repeated_rows": sum(one.repeated_rows for one in runs),
    }


def _by_transport(runs: list[Run]) -> dict[str, Any]:
    return {
        "runs": len(runs),
        "identical": sum(one.identical for one in runs),
        "repeated_rows": sum(one.repeated_rows for one in runs),
        "pause_s": {
            kind: _spread(sorted(one.pause_s for one in runs if one.kind == kind)) for kind in ("kill", "freeze")
        },
    }


def _spread(values: list[float]) -> dict[str, float]:
    if not values:
        return {}
    return {
        "median": statistics.median(values),
        "p95": values[min(len(values) - 1, round(0.95 * len(values)))],
        "max": values[-1],
    }
