"""`python -m bench opening`: what a dead server costs a new session, and whether later ones still try it."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.fault_runs import make_tiny, scene_of
from bench.report import commit, hardware
from shoal.client.client import AsyncClient
from shoal.types import Hop
from tests.support.fault_scenario import FaultScenario

AIM_S = 1.5
LATER = 5
"""Sessions that are opened after the first one that met the dead server."""

SIGNALS = {"kill": signal.SIGKILL, "freeze": signal.SIGSTOP}


def run(rounds: int, seed: int = 1) -> dict[str, Any]:
    """So many rounds for each kind of death, and for a client that knew the server as for one that has only its record."""
    return asyncio.run(_run(rounds, seed))


async def _run(rounds: int, seed: int) -> dict[str, Any]:
    rng = random.Random(seed)
    cases: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "tiny"
        make_tiny(model)
        os.environ["SHOAL_MODELS"] = folder
        async with scene_of(str(model)) as scene:
            for _ in range(rounds):
                for kind in SIGNALS:
                    for knows in (True, False):
                        await scene.restore()
                        case = f"{kind}, {'known' if knows else 'by its record'}"
                        cases.setdefault(case, []).append(await _round(scene, kind, knows, rng))
                        print(f"{case}: {cases[case][-1]}", file=sys.stderr, flush=True)
    extra = [one["extra_s"] for case in cases.values() for one in case]
    return {
        "name": "opening",
        "rounds": len(extra),
        "cases": {name: _summary(ones) for name, ones in cases.items()},
        "extra_s": {"median": statistics.median(extra), "max": max(extra)},
        "aim_s": AIM_S,
        "within_aim": sum(one <= AIM_S for one in extra),
        "later_routes_through_the_dead": int(sum(one["later"] for case in cases.values() for one in case)),
        "hardware": hardware(),
        "commit": commit(),
    }


def _summary(ones: list[dict[str, float]]) -> dict[str, float]:
    extra = [one["extra_s"] for one in ones]
    return {"rounds": len(ones), "median_s": statistics.median(extra), "max_s": max(extra)}


async def _round(scene: FaultScenario, kind: str, knows: bool, rng: random.Random) -> dict[str, float]:
    """The seconds that the first session takes longer than one before the death, and later routes that are still wrong."""
    tickets = [actor.ticket for actor in scene.troupe.live]
    async with AsyncClient(tickets, only="tls") as client:
        usual_s, route = await _open(client, scene)
        victim = scene.troupe.of(rng.choice(route).peer)
        async with AsyncClient(tickets, only="tls") as stranger:
            victim.send_signal(SIGNALS[kind])
            one = client if knows else stranger
            first_s, _ = await _open(one, scene)
            routes = [(await _open(one, scene))[1] for _ in range(LATER)]
    later = sum(any(hop.peer == victim.peer for hop in route) for route in routes)
    return {"usual_s": usual_s, "extra_s": first_s - usual_s, "later": later}


async def _open(client: AsyncClient, scene: FaultScenario) -> tuple[float, tuple[Hop, ...]]:
    began = time.monotonic()
    async with client.session(scene.model.spec, max_tokens=64) as session:
        return time.monotonic() - began, tuple(session.route)
