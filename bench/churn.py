"""`python -m bench churn`: what a server's death costs a session that decodes, with and without somebody standing by."""

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

import msgspec
import torch

from bench.fault_runs import make_tiny, scene_of
from bench.report import commit, hardware
from shoal.client.client_options import SessionOptions
from shoal.client.session.session import Session
from shoal.engine.proof import numbers
from tests.support.fault_scenario import FaultScenario

STEPS = 1000
"""One failure in so many steps."""

KILL_BETWEEN = (300, 700)
DETECTION_S = 1.5
REPLAY_FACTOR = 1.2
THROUGHPUT_AIM = 0.9
STANDBY_READY_S = 10.0


class Stretch(msgspec.Struct):
    """STEPS decoding steps of one session: how long they took, and what was replayed meanwhile."""

    seconds: float
    slowest_s: float
    replayed_rows: int
    outputs: torch.Tensor


def run(rounds: int, seed: int = 1) -> dict[str, Any]:
    """So many rounds, each with and without a failure, alone and with a hop standing by, one after the other."""
    return asyncio.run(_run(rounds, seed))


async def _run(rounds: int, seed: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "tiny"
        make_tiny(model, max_positions=2 * STEPS)
        os.environ["SHOAL_MODELS"] = folder
        rng = random.Random(seed)
        async with scene_of(str(model)) as scene:
            done = [await _round(scene, rng, index) for index in range(rounds)]
    lost = [one["lost_s"] for one in done]
    standbys = [one["standby_pause_s"] for one in done]
    return {
        "name": "churn",
        "steps": STEPS,
        "rounds": done,
        "lost_s": {"median": statistics.median(lost), "max": max(lost)},
        "pauses_within_bound": sum(one["pause_s"] <= one["bound_s"] for one in done),
        "within_bound": sum(one["lost_s"] <= one["bound_s"] for one in done),
        "standby_pause_s": {"median": statistics.median(standbys), "max": max(standbys)},
        "standby_throughput": statistics.median(one["standby_throughput"] for one in done),
        "standby_throughput_aim": THROUGHPUT_AIM,
        "identical": sum(one["identical"] for one in done),
        "hardware": hardware(),
        "commit": commit(),
    }


async def _round(scene: FaultScenario, rng: random.Random, index: int) -> dict[str, Any]:
    rows = numbers(index, STEPS, scene.model.spec.hidden_size)
    stretches: dict[tuple[int, bool], Stretch] = {}
    for redundancy in (1, 2):
        for disturbed in (False, True):
            await scene.restore()
            damage = (signal.SIGKILL, signal.SIGSTOP)[index % 2] if disturbed else None
            stretches[redundancy, disturbed] = await _stretch(scene, rows, redundancy, damage, rng)
    rate = await _prefill_rate(scene, rows)
    alone, disturbed_alone = stretches[1, False], stretches[1, True]
    one = {
        "failure": ("kill", "freeze")[index % 2],
        "undisturbed_s": alone.seconds,
        "lost_s": disturbed_alone.seconds - alone.seconds,
        "replayed_rows": disturbed_alone.replayed_rows,
        "prefill_rows_per_s": rate,
        "bound_s": DETECTION_S + REPLAY_FACTOR * disturbed_alone.replayed_rows / rate,
        "standby_undisturbed_s": stretches[2, False].seconds,
        "standby_disturbed_s": stretches[2, True].seconds,
        "standby_throughput": stretches[2, False].seconds / stretches[2, True].seconds,
        "pause_s": disturbed_alone.slowest_s,
        "standby_pause_s": stretches[2, True].slowest_s,
        "standby_replayed_rows": stretches[2, True].replayed_rows,
        "identical": all(torch.equal(one.outputs, alone.outputs) for one in stretches.values()),
    }
    said = f"{one['lost_s']:.2f} s lost (bound {one['bound_s']:.2f}), standing by {one['standby_throughput']:.3f}"
    said += f" and a pause of {one['standby_pause_s']:.2f} s"
    print(f"round {index}: {said}, {'same rows' if one['identical'] else 'OTHER ROWS'}", file=sys.stderr, flush=True)
    return one


async def _stretch(
    scene: FaultScenario, rows: torch.Tensor, redundancy: int, damage: signal.Signals | None, rng: random.Random
) -> Stretch:
    options = SessionOptions(max_tokens=2 * STEPS, redundancy=redundancy)
    strike_at = rng.randint(*KILL_BETWEEN) if damage is not None else None
    slowest_s = 0.0
    async with scene.client.session(scene.model.spec, options=options) as session:
        outputs = [await session.step(rows[:1])]
        if redundancy > 1:
            await _standing_by(session)
        began = time.monotonic()
        for position in range(1, STEPS):
            if position == strike_at and damage is not None:
                scene.troupe.of(rng.choice(session.route).peer).send_signal(damage)
            asked_at = time.monotonic()
            outputs.append(await session.step(rows[position : position + 1]))
            slowest_s = max(slowest_s, time.monotonic() - asked_at)
        seconds = time.monotonic() - began
        replayed = sum(heal.replayed_rows for heal in session.failovers)
    return Stretch(seconds, slowest_s, replayed, torch.cat(outputs))


async def _standing_by(session: Session) -> None:
    """Until every hop has somebody."""
    async with asyncio.timeout(STANDBY_READY_S):
        while not all(stage.ready for stage in session.supervisor.state.stages):  # noqa: ASYNC110 (no event tells)
            await asyncio.sleep(0.01)


async def _prefill_rate(scene: FaultScenario, rows: torch.Tensor) -> float:
    """Rows per second of a prefill through the whole route."""
    async with scene.client.session(scene.model.spec, options=SessionOptions(max_tokens=2 * STEPS)) as session:
        await session.step(rows[:64], reply=1)
        began = time.monotonic()
        await session.step(rows, reply=1)
        return len(rows) / (time.monotonic() - began)
