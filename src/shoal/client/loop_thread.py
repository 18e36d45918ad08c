"""An event loop in a thread of its own, for code that has none or must not block its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Coroutine
from typing import Any, Generic, TypeVar

from shoal.errors import UsageError

T = TypeVar("T")

REACTS_S = 0.2
"""How long Ctrl-C waits for what it has cancelled; what takes longer to clean up goes on in the loop."""

CLOSE_S = 5.0
"""How long closing waits for what still runs."""


class LoopThread:
    """Runs work of any thread, several at once. `close` ends it."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._process = os.getpid()
        self._begins = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="shoal-client", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self._loop.run_forever()
        self._loop.run_until_complete(_cancel_others())
        self._loop.close()

    def run(self, work: Coroutine[Any, Any, T], within_s: float | None = None) -> T:
        """Run to the end. Ctrl-C cancels the work and is raised; so is TimeoutError after `within_s`.

        Raises UsageError when this is closed, or becomes so meanwhile, and in a process that was forked: no thread is there.
        """
        if os.getpid() != self._process:
            work.close()
            raise UsageError("a model belongs to the process that has connected: connect again in this one")
        call = _Call(self._loop, work)
        with self._begins:
            mine = threading.current_thread() is not self._thread
            if mine and not self._closed:
                self._loop.call_soon_threadsafe(call.begin)
            else:
                work.close()
                raise UsageError("the model is closed" if mine else "a model cannot wait for itself")
        return call.result(within_s)

    def close(self, within_s: float = CLOSE_S) -> None:
        """Cancel what still runs, and stop. Closing twice is harmless; a forked process has nothing to close."""
        if os.getpid() != self._process:
            return
        with self._begins:
            if self._closed:
                return
            self._closed = True
            self._loop.call_soon_threadsafe(self._loop.stop)
        if threading.current_thread() is not self._thread:
            self._thread.join(within_s)


class _Call(Generic[T]):
    """Work on the loop, and the thread that waits for it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T]) -> None:
        self._loop = loop
        self._work = work
        self._task: asyncio.Task[T] | None = None
        self._ended = threading.Event()

    def begin(self) -> None:
        """On the loop: start."""
        self._task = self._loop.create_task(self._work)
        self._task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[T]) -> None:
        if not task.cancelled():
            task.exception()  # seen, also when its thread has stopped waiting
        self._ended.set()

    def result(self, within_s: float | None) -> T:
        """In the thread: wait for the result."""
        try:
            if not self._ended.wait(within_s):
                raise TimeoutError
        except BaseException:
            with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile
                self._loop.call_soon_threadsafe(self._cancel)
                self._ended.wait(REACTS_S)
            raise
        assert self._task is not None
        if self._task.cancelled():
            raise UsageError("the model was closed meanwhile")
        return self._task.result()

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()


async def _cancel_others() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_asyncgens()
