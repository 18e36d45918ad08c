"""Tasks with an owner."""

from __future__ import annotations

import asyncio
import logging

import pytest

from shoal.tasks import MOST_PAUSE_S, BackgroundTask, OwnedTasks, first_done, keep_running

LOG = logging.getLogger("shoal.test")


class SleepLog:
    """A clock on which a sleep takes no time; `slept` has the seconds of each."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


async def test_work_begins_again_after_an_error(caplog: pytest.LogCaptureFixture) -> None:
    """Each error is logged with its trace; the pauses grow up to a bound."""
    clock, left = SleepLog(), list(range(9))

    async def work() -> None:
        if left:
            raise ValueError(f"mistake {left.pop()}")

    with caplog.at_level(logging.ERROR, "shoal"):
        await keep_running("gossip", work, clock, LOG)
    assert clock.slept == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert all(record.exc_info is not None for record in caplog.records)
    assert "gossip failed" in caplog.text
    assert "mistake 0" in caplog.text


async def test_a_long_good_run_makes_the_pause_short_again() -> None:
    """Work that ran for longer than the longest pause counts as new."""
    clock, runs = SleepLog(), [0.0, 0.0, MOST_PAUSE_S + 1]

    async def work() -> None:
        if runs:
            clock.now += runs.pop(0)
            raise ValueError

    await keep_running("gossip", work, clock, LOG)
    assert clock.slept == [1, 2, 1]


async def test_cancelling_ends_the_work() -> None:
    """A cancellation is no mistake."""
    task = asyncio.ensure_future(keep_running("gossip", asyncio.Event().wait, SleepLog(), LOG))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_tasks_end_with_their_owner() -> None:
    """Leaving the block cancels what still runs."""
    async with OwnedTasks() as tasks:
        task = tasks.start(asyncio.Event().wait())
        await asyncio.sleep(0)
    assert task.cancelled()


async def test_the_error_of_a_task_ends_its_owner() -> None:
    """The body and the other tasks are cancelled; the error comes as it is."""

    async def fail() -> None:
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        async with OwnedTasks() as tasks:
            other = tasks.start(asyncio.Event().wait())
            tasks.start(fail())
            await asyncio.Event().wait()
    assert other.cancelled()


async def test_the_error_of_the_body_comes_as_it_is() -> None:
    """Not in a group."""
    with pytest.raises(KeyError):
        async with OwnedTasks() as tasks:
            tasks.start(asyncio.Event().wait())
            raise KeyError


async def test_the_first_work_that_ends_counts() -> None:
    """Its place and result are returned; the others are cancelled."""
    cancelled = asyncio.Event()

    async def long() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async def short() -> int:
        await asyncio.sleep(0)
        return 7

    assert await first_done(long(), short()) == (1, 7)
    assert cancelled.is_set()


async def test_the_first_error_is_raised() -> None:
    """As it is, not in a group."""

    async def fail() -> None:
        raise ValueError("first")

    with pytest.raises(ValueError, match="first"):
        await first_done(asyncio.Event().wait(), fail())


async def test_cancelling_first_done_cancels_all() -> None:
    """No work outlives the one who waits."""
    events = [asyncio.Event(), asyncio.Event()]

    async def wait(index: int) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            events[index].set()

    task = asyncio.ensure_future(first_done(wait(0), wait(1)))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert all(event.is_set() for event in events)


async def test_a_background_task_tells_its_error(caplog: pytest.LogCaptureFixture) -> None:
    """The error is logged with its trace, and the owner told that the work has ended."""
    ended = asyncio.Event()

    async def fail() -> None:
        raise ValueError("no more")

    with caplog.at_level(logging.ERROR, "shoal"):
        task = BackgroundTask("reading", fail(), LOG, lambda task: ended.set())
        await ended.wait()
    assert task.done
    assert "reading failed" in caplog.text
    assert "no more" in caplog.text


async def test_a_background_task_is_closed() -> None:
    """Closing cancels the work; closing twice is harmless."""
    task = BackgroundTask("reading", asyncio.Event().wait(), LOG)
    await asyncio.sleep(0)
    await task.close()
    await task.close()
    assert task.done
