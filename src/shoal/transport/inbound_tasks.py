"""The tasks in which a transport proves and serves what comes in."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from shoal.errors import ShoalError
from shoal.transport.channel import MAX_INBOUND, MAX_PENDING_HANDSHAKES, Channel, ChannelHandler


class InboundTasks:
    """Tasks that live until they finish or their transport closes; some of them for callers not yet proven."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._unproven: dict[asyncio.Task[None], None] = {}

    @property
    def full(self) -> bool:
        """Whether one more has to be turned away."""
        return len(self._tasks) >= MAX_INBOUND

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run `work` in a task of its own."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def start_unproven(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """The same for a handshake, which calls `proven` when it is through. With too many, the oldest is cancelled."""
        if len(self._unproven) >= MAX_PENDING_HANDSHAKES:
            oldest = next(iter(self._unproven))
            del self._unproven[oldest]
            oldest.cancel()
        task = self.start(work)
        self._unproven[task] = None
        return task

    def proven(self) -> None:
        """The current task's caller is known now."""
        task = asyncio.current_task()
        if task is not None:
            self._unproven.pop(task, None)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._unproven.pop(task, None)
        error = None if task.cancelled() else task.exception()
        if error is not None:  # now, not when the collector finds the task
            context = {"message": "serving a channel failed", "exception": error, "task": task}
            task.get_loop().call_exception_handler(context)

    async def close(self) -> None:
        """Cancel all of them and wait until they are gone."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def serve(channel: Channel, handler: ChannelHandler) -> None:
    """Run the handler, then close the channel; drop it if the handler failed.

    An error of Shoal's own ends the channel and nothing else; any other is raised, for it is a mistake in the handler.
    """
    try:
        await handler(channel)
    except ShoalError:
        channel.abort()
    except BaseException:
        channel.abort()
        raise
    else:
        await channel.close()
