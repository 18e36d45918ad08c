"""The virtual clock."""

from __future__ import annotations

import asyncio

import pytest

from shoal.clock import Clock
from tests.support.virtual_clock import VirtualClock


async def test_sleepers_wake_in_order() -> None:
    """By time, then by who came first; each sees the time that it waited for."""
    clock: Clock = VirtualClock()
    assert isinstance(clock, VirtualClock)
    woken: list[tuple[str, float]] = []

    async def sleeper(name: str, seconds: float) -> None:
        await clock.sleep(seconds)
        woken.append((name, clock.monotonic()))

    plan = (("c", 3.0), ("a", 1.0), ("b", 1.0), ("late", 5.0))
    tasks = [asyncio.create_task(sleeper(*entry)) for entry in plan]
    await clock.advance(4.0)
    assert woken == [("a", 1.0), ("b", 1.0), ("c", 3.0)]
    assert clock.monotonic() == 4.0
    await clock.advance(1.0)
    assert woken[-1] == ("late", 5.0)
    await asyncio.gather(*tasks)


async def test_what_sleepers_start_counts() -> None:
    """A sleeper that sleeps again within the time advanced wakes again."""
    clock, ticks = VirtualClock(), []

    async def ticker() -> None:
        while True:
            await clock.sleep(1.0)
            ticks.append(clock.monotonic())

    task = asyncio.create_task(ticker())
    await clock.advance(3.5)
    assert ticks == [1.0, 2.0, 3.0]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_run_jumps() -> None:
    """Hours pass at once, and the result comes back."""
    clock = VirtualClock(wall_s=1000.0)

    async def day() -> str:
        for _ in range(24):
            await clock.sleep(3600.0)
        return "done"

    assert await clock.run(day()) == "done"
    assert clock.monotonic() == 86_400.0
    assert clock.wall() == 87_400.0


async def test_run_passes_errors_on() -> None:
    """What the work raises is raised."""

    async def fail() -> None:
        await clock.sleep(1.0)
        raise KeyError("x")

    clock = VirtualClock()
    with pytest.raises(KeyError):
        await clock.run(fail())


async def test_a_deadlock_is_told() -> None:
    """Waiting for what nobody will do is an error, not a hang."""
    with pytest.raises(RuntimeError, match="nothing will ever happen"):
        await VirtualClock().run(asyncio.Event().wait())


async def test_cancelled_sleepers_are_skipped() -> None:
    """A cancelled sleep does not hold the clock up, nor does a sleep of nothing."""
    clock = VirtualClock()
    cancelled = asyncio.create_task(clock.sleep(1.0))
    await clock.settle()
    cancelled.cancel()
    await asyncio.gather(cancelled, return_exceptions=True)
    await clock.sleep(0)
    await clock.sleep(-1)
    await clock.run(clock.sleep(2.0))
    assert clock.monotonic() == 2.0
