"""The head for many sessions at once: who is computed together, and that nobody notices."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from shoal.client.head import BatchedHead


class Desk:
    """A head of numbers: a row's logits are the row; the thread waits at a gate before each batch."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.started = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self.head = BatchedHead(self._logits, ThreadPoolExecutor(1))

    def _logits(self, rows: torch.Tensor) -> torch.Tensor:
        self._loop.call_soon_threadsafe(self.started.set)
        assert self.gate.wait(10)
        return rows

    def choose(self, number: float, whose: object = None) -> asyncio.Task[int]:
        """Ask for a token: the number itself; a negative one fails."""

        def pick(logits: torch.Tensor) -> int:
            if logits[0] < 0:
                raise ValueError("negative")
            return int(logits[0])

        return asyncio.ensure_future(self.head.choose(torch.tensor([[number]]), pick, whose))


async def test_what_comes_while_the_thread_is_busy_goes_together() -> None:
    """One row first, then the seven that came meanwhile; each gets its own token."""
    desk = Desk()
    tasks = [desk.choose(0)]
    await desk.started.wait()
    tasks += [desk.choose(number) for number in range(1, 8)]
    await asyncio.sleep(0)
    desk.gate.set()
    assert await asyncio.gather(*tasks) == list(range(8))
    assert desk.head.batch_rows == {1: 1, 7: 1}


async def test_a_failure_is_its_owners_alone() -> None:
    """What a pick raises reaches the one who asked."""
    desk = Desk()
    first = desk.choose(1)
    await desk.started.wait()
    wrong, right = desk.choose(-1), desk.choose(2)
    await asyncio.sleep(0)
    desk.gate.set()
    assert (await first, await right) == (1, 2)
    with pytest.raises(ValueError, match="negative"):
        await wrong


async def test_whoever_left_is_not_computed() -> None:
    """A cancelled question costs nothing, and harms nobody."""
    desk = Desk()
    first = desk.choose(1)
    await desk.started.wait()
    gone, stays = desk.choose(2), desk.choose(3)
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.sleep(0)
    desk.gate.set()
    assert (await first, await stays) == (1, 3)
    assert desk.head.batch_rows == {1: 2}


async def test_a_head_that_fails_tells_everybody() -> None:
    """And works again afterwards."""
    broken = True

    def logits(rows: torch.Tensor) -> torch.Tensor:
        if broken:
            raise RuntimeError("no memory")
        return rows

    head = BatchedHead(logits, ThreadPoolExecutor(1))
    with pytest.raises(RuntimeError, match="no memory"):
        await head.choose(torch.zeros(1, 1), lambda _: 0)
    broken = False
    assert await head.choose(torch.zeros(1, 1), lambda _: 5) == 5


class Ticking:
    """A clock that each batch moves by a millisecond, and each look at it by a little."""

    def __init__(self) -> None:
        self.time_s = 0.0

    def monotonic(self) -> float:
        """Clock."""
        self.time_s += 0.0001
        return self.time_s

    def wall(self) -> float:
        """Clock."""
        return self.time_s

    async def sleep(self, seconds: float) -> None:
        """Clock: nobody sleeps here."""
        raise AssertionError


async def test_one_reply_alone_is_computed_in_the_loop() -> None:
    """From the second token on, if a batch is short and the thread is free; never while another reply is under way."""
    clock, threads, free = Ticking(), [], True

    def logits(rows: torch.Tensor) -> torch.Tensor:
        threads.append(threading.current_thread() is threading.main_thread())
        clock.time_s += 0.001
        return rows

    head = BatchedHead(logits, ThreadPoolExecutor(1), clock, lambda: free)

    async def choose(whose: str, number: float = 5.0) -> int:
        return await head.choose(torch.tensor([[number]]), lambda row: int(row[0]), whose)

    assert [await choose("a", number) for number in range(3)] == [0, 1, 2]
    assert threads == [False, True, True]
    free = False
    await choose("a")
    assert threads[3:] == [False]
    free = True
    for whose in "ababab":
        clock.time_s += 0.1  # so late that nobody waits for the other
        await choose(whose)
    assert threads[-2:] == [False, False]
    clock.time_s += 9.0  # the other one has gone
    with pytest.raises(ValueError, match="NaN"):
        await choose("a", float("nan"))
    assert await choose("a") == 5
    assert threads[-1] is True


async def test_nothing_is_remembered_of_replies_that_have_ended() -> None:
    """Nor of one that was left while its token was computed."""
    gate = threading.Event()

    def logits(rows: torch.Tensor) -> torch.Tensor:
        gate.wait(10)
        return rows

    head = BatchedHead(logits, ThreadPoolExecutor(1))
    ended, left = (asyncio.ensure_future(head.choose(torch.zeros(1, 1), lambda _: 1, whose)) for whose in "ab")
    await asyncio.sleep(0.01)
    left.cancel()
    head.forget("b")
    gate.set()
    assert await ended == 1
    head.forget("a")
    await asyncio.sleep(0.05)
    assert not head._delay._away
    assert not head._delay._usual
