"""`python -m bench steps`: what a step costs outside the runner, from the submission of a row to its output."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bench.report import report
from shoal.engine.batch_queue import BatchQueue
from shoal.engine.compute_thread import ComputeThread
from shoal.protocol.messages import HopTrace
from shoal.protocol.rows import Rows
from shoal.types import Span

SESSIONS = 8
HIDDEN_SIZE = 576
ROUNDS = 7
WARM_UP_STEPS = 100


def run(steps: int) -> dict[str, Any]:
    """Microseconds per step of `steps` one after the other, the fastest of some rounds: in the thread, in the event loop,
    and in the thread with a row of each of eight sessions."""
    thread, here, together = (
        1e6 * asyncio.run(_fastest_s(any_thread, sessions, steps))
        for any_thread, sessions in ((False, 1), (True, 1), (False, SESSIONS))
    )
    return report(
        "steps", "µs/step", thread, "in the event loop", here, sessions=SESSIONS, together=together, steps=steps
    )


async def _fastest_s(any_thread: bool, sessions: int, steps: int) -> float:
    counter = _Counter()
    async with ComputeThread(_NoRunner(any_thread), BatchQueue()) as compute:
        for name in map(str, range(sessions)):
            await compute.open(name, name, Span(0, 1), 1 << 30, counter.count, counter.fail)
        await _rounds(compute, counter, sessions, range(WARM_UP_STEPS))
        taken_s = []
        for number in range(ROUNDS):
            first = WARM_UP_STEPS + number * steps
            began_at = time.perf_counter()
            await _rounds(compute, counter, sessions, range(first, first + steps))
            taken_s.append(time.perf_counter() - began_at)
    return min(taken_s) / steps


async def _rounds(compute: ComputeThread, counter: _Counter, sessions: int, positions: range) -> None:
    """A row of each session at each position, the next when the last output has come."""
    row = torch.zeros(1, HIDDEN_SIZE)
    for position in positions:
        counter.expect(sessions)
        for session in range(sessions):
            compute.submit(Rows(str(session), position, row))
        await counter.done.wait()


class _Counter:
    """Takes outputs, and says when those that were expected have come."""

    def __init__(self) -> None:
        self.done = asyncio.Event()
        self._missing = 0

    def expect(self, count: int) -> None:
        self._missing = count
        self.done.clear()

    def count(self, rows: Rows, trace: HopTrace) -> None:
        self._missing -= 1
        if not self._missing:
            self.done.set()

    def fail(self, error: Exception) -> None:
        raise error


class _NoRunner:
    """Gives back what it gets."""

    found_rows = 0

    def __init__(self, any_thread: bool) -> None:
        self.any_thread = any_thread

    def open(self, session: str, span: Span, max_tokens: int, client: str) -> None: ...

    def truncate(self, session: str, num_tokens: int) -> None: ...

    def close(self, session: str) -> None: ...

    def step(self, batch: Sequence[Rows], pauses: Mapping[str, int]) -> list[Tensor]:
        return [rows.hidden_states for rows in batch]
