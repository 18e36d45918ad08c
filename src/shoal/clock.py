"""Time as a dependency, so that tests can own it."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """Where a component takes its time from; all values are seconds."""

    def monotonic(self) -> float:
        """A clock that never goes back, for durations and deadlines."""
        ...

    def wall(self) -> float:
        """Seconds since the Unix epoch, for what is shared with other machines."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        ...


class SystemClock:
    """The machine's own clocks and the running event loop's timers."""

    def monotonic(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return time.time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


SYSTEM_CLOCK = SystemClock()
