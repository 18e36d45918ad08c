"""The background loop: results, errors, several threads, interruption and closing at any moment."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from shoal.client.loop_thread import LoopThread
from shoal.errors import UsageError


async def give(value: int) -> int:
    """A result, a moment later."""
    await asyncio.sleep(0)
    return value


async def fail() -> None:
    """An error."""
    raise LookupError("mine")


def test_work_gives_its_result_or_its_error() -> None:
    """To the thread that asked."""
    loop = LoopThread()
    assert loop.run(give(3)) == 3
    with pytest.raises(LookupError, match="mine"):
        loop.run(fail())
    loop.close()


def test_several_threads_ask_at_once() -> None:
    """Each gets its own answer."""
    loop = LoopThread()
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda value: loop.run(give(value)), range(100))) == list(range(100))
    loop.close()


async def test_a_running_loop_is_not_in_the_way() -> None:
    """As in a notebook: the work runs on the other loop."""
    loop = LoopThread()
    assert loop.run(give(3)) == 3
    loop.close()


def test_a_closed_loop_refuses() -> None:
    """Closing twice is harmless."""
    loop = LoopThread()
    loop.close()
    loop.close()
    with pytest.raises(UsageError, match="the model is closed"):
        loop.run(give(3))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_is_told_so() -> None:
    """Instead of waiting for a thread that it does not have; its parent's loop goes on."""
    loop = LoopThread()
    child = os.fork()
    if child == 0:
        try:
            loop.run(give(3))
        except UsageError:
            loop.close()
            os._exit(7)
        os._exit(1)
    ended = None
    give_up_at = time.monotonic() + 20.0
    while ended is None and time.monotonic() < give_up_at:
        found, status = os.waitpid(child, os.WNOHANG)
        ended = os.waitstatus_to_exitcode(status) if found else None
        time.sleep(0.02)
    if ended is None:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert ended == 7
    assert loop.run(give(3)) == 3
    loop.close()


def test_closing_ends_what_other_threads_wait_for() -> None:
    """With an error of ours, after it has cleaned up."""
    loop, began, cleaned = LoopThread(), threading.Event(), threading.Event()

    async def wait() -> None:
        try:
            began.set()
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned.set()

    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(lambda: loop.run(wait()))
        assert began.wait(10)
        loop.close()
        with pytest.raises(UsageError, match="closed meanwhile"):
            waiting.result(10)
    assert cleaned.is_set()


def test_work_cannot_wait_for_itself() -> None:
    """It would for ever."""
    loop = LoopThread()

    async def inner() -> None:
        loop.run(give(3))

    with pytest.raises(UsageError, match="wait for itself"):
        loop.run(inner())
    loop.close()


def test_a_time_limit_cancels() -> None:
    """TimeoutError, and the loop goes on."""
    loop = LoopThread()
    with pytest.raises(TimeoutError):
        loop.run(asyncio.sleep(60), 0.01)
    assert loop.run(give(3)) == 3
    loop.close()


def test_ctrl_c_cancels_and_is_raised() -> None:
    """Within the time that is waited for what cleans up, though it takes longer; the loop goes on."""
    loop, cancelled = LoopThread(), threading.Event()
    main = threading.main_thread().ident
    assert main is not None
    assert threading.get_ident() == main

    async def stubborn() -> None:
        threading.Timer(0.05, lambda: signal.pthread_kill(main, signal.SIGINT)).start()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
            await asyncio.sleep(60)

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        loop.run(stubborn())
    assert cancelled.is_set()
    assert time.monotonic() - began < 30
    assert loop.run(give(3)) == 3
    loop.close()
