"""Tasks with an owner: work that begins again after a mistake, and several works of which the first one counts."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from types import TracebackType
from typing import Any

from shoal.clock import Clock

FIRST_PAUSE_S = 1.0
MOST_PAUSE_S = 60.0
"""Between a mistake and the next try of the same work; twice as long each time, and short again after a long good run."""


class OwnedTasks:
    """The tasks of one owner. Use with `async with`: leaving it cancels them and waits until they have ended.

    An error of a task cancels the body and the other tasks, and is raised as it is, not in a group (asyncio.TaskGroup's rule
    otherwise). Enter and leave it in the same task.
    """

    def __init__(self) -> None:
        self._group = asyncio.TaskGroup()
        self._tasks: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> OwnedTasks:
        await self._group.__aenter__()
        return self

    def start(self, work: Coroutine[Any, Any, object]) -> asyncio.Task[Any]:
        """Run `work` in a task that ends with its owner."""
        task = self._group.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        try:
            await self._group.__aexit__(kind, error, trace)
        except BaseExceptionGroup as group:
            first = group.exceptions[0]
            if first is not error:
                raise first from None


class BackgroundTask:
    """One task of an object that lives longer than any block of code, such as a channel. Its error is logged with its trace.

    `ended` is called when the task has ended, however that came, also when it was cancelled before it began.
    """

    def __init__(
        self,
        name: str,
        work: Coroutine[Any, Any, object],
        log: logging.Logger,
        ended: Callable[[BackgroundTask], object] | None = None,
    ) -> None:
        self._name = name
        self._log = log
        self.task: asyncio.Task[object] = asyncio.get_running_loop().create_task(work, name=name)
        self.task.add_done_callback(self._tell)
        if ended is not None:
            self.task.add_done_callback(lambda _: ended(self))

    def _tell(self, task: asyncio.Task[object]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._log.error("%s failed", self._name, exc_info=error)

    @property
    def done(self) -> bool:
        """Whether the work has ended."""
        return self.task.done()

    def cancel(self) -> None:
        """End the work soon. Harmless when it has ended."""
        self.task.cancel()

    async def wait(self) -> None:
        """Wait until the work has ended."""
        await asyncio.wait([self.task])

    async def close(self) -> None:
        """End the work and wait until it has ended. Closing twice is harmless."""
        self.cancel()
        await self.wait()


async def keep_running(name: str, work: Callable[[], Awaitable[None]], clock: Clock, log: logging.Logger) -> None:
    """Run `work` until it returns or is cancelled. An error is logged with its trace, then the work begins again."""
    pause_s = FIRST_PAUSE_S
    while True:
        began = clock.monotonic()
        try:
            await work()
            return
        except Exception:
            if clock.monotonic() - began > MOST_PAUSE_S:
                pause_s = FIRST_PAUSE_S
            log.exception("%s failed and begins again in %.0f s", name, pause_s)
        await clock.sleep(pause_s)
        pause_s = min(2 * pause_s, MOST_PAUSE_S)


async def first_done(*works: Coroutine[Any, Any, object]) -> tuple[int, Any]:
    """Run all works until one of them ends, and cancel the others; returns its index and its result.

    Raises what the first one raised. Whatever the others raise while they are cancelled is raised too, as it is a mistake.
    """
    ended: asyncio.Future[tuple[int, Any]] = asyncio.get_running_loop().create_future()

    async def run(index: int, work: Coroutine[Any, Any, object]) -> None:
        try:
            result = await work
        except Exception as error:
            if ended.done():
                raise
            ended.set_exception(error)
        else:
            if not ended.done():
                ended.set_result((index, result))

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(run(index, work)) for index, work in enumerate(works)]
        await asyncio.wait([ended])
        for task in tasks:
            task.cancel()
    return ended.result()
