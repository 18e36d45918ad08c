"""Time that moves only when a test says so."""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")

SETTLE_ROUNDS = 50
"""Turns of the event loop after which everything that is going to happen at one instant has happened."""


class VirtualClock:
    """A `shoal.clock.Clock` whose sleepers wake in order of their time, without any real waiting.

    It knows about what happens in this event loop only: with real sockets, files or threads in play, advance by hand and
    wait for them by other means.
    """

    def __init__(self, wall_s: float = 1_700_000_000.0) -> None:
        self._now = 0.0
        self._wall = wall_s
        self._order = 0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    def monotonic(self) -> float:
        """Seconds since the clock was made."""
        return self._now

    def wall(self) -> float:
        """Seconds since the Unix epoch, as this clock has it."""
        return self._wall + self._now

    async def sleep(self, seconds: float) -> None:
        """Wait until the clock has moved that far; not positive: only let others run."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        woken = asyncio.get_running_loop().create_future()
        self._order += 1
        heapq.heappush(self._sleepers, (self._now + seconds, self._order, woken))
        await woken

    def skip(self, seconds: float) -> None:
        """Move on where no event loop runs: nobody sleeps."""
        assert not self._sleepers
        self._now += seconds

    async def settle(self) -> None:
        """Let everything run that can run at this instant."""
        for _ in range(SETTLE_ROUNDS):
            await asyncio.sleep(0)

    async def advance(self, seconds: float) -> None:
        """Move on by `seconds`; sleepers wake one by one on the way, and what they start counts."""
        await self.settle()
        target = self._now + seconds
        while (due := self._next_due()) is not None and due <= target:
            await self._wake_next()
        self._now = max(self._now, target)
        await self.settle()

    async def run(self, work: Awaitable[T]) -> T:
        """The result of `work`, with the clock jumping ahead whenever nothing else is left to do.

        Raises RuntimeError when `work` waits for something that no sleeper will bring about.
        """
        task = asyncio.ensure_future(work)
        try:
            while not task.done():
                await self.settle()
                if task.done():
                    break
                if self._next_due() is None:
                    raise RuntimeError("everything waits and nobody sleeps: nothing will ever happen")
                await self._wake_next()
            return await task
        finally:
            task.cancel()

    def _next_due(self) -> float | None:
        while self._sleepers and self._sleepers[0][2].done():  # cancelled sleepers
            heapq.heappop(self._sleepers)
        return self._sleepers[0][0] if self._sleepers else None

    async def _wake_next(self) -> None:
        due, _, woken = heapq.heappop(self._sleepers)
        self._now = max(self._now, due)
        woken.set_result(None)
        await self.settle()


class FastClock:
    """A `shoal.clock.Clock` on the machine's own time, so many times as fast."""

    def __init__(self, factor: float) -> None:
        self._factor = factor

    def monotonic(self) -> float:
        """A clock that never goes back."""
        return time.monotonic() * self._factor

    def wall(self) -> float:
        """Seconds since the Unix epoch, as everybody has it."""
        return time.time()

    async def sleep(self, seconds: float) -> None:
        """Wait for a part of the time."""
        await asyncio.sleep(seconds / self._factor)
