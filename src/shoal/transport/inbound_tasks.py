"""The tasks in which a transport proves and serves what comes in."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

from shoal.errors import ShoalError
from shoal.tasks import BackgroundTask
from shoal.transport.channel import MAX_INBOUND, MAX_PENDING_HANDSHAKES, Channel, ChannelHandler
from shoal.transport.slots import Slots

log = logging.getLogger("shoal.transport")


class InboundTasks:
    """Tasks that live until they finish or their transport closes; some of them for callers not yet proven.

    A mistake in one of them is logged with its trace and ends nothing else.
    """

    def __init__(self) -> None:
        self._tasks: dict[BackgroundTask, None] = {}
        self._unproven: Slots[asyncio.Task[Any]] = Slots(MAX_PENDING_HANDSHAKES)

    @property
    def full(self) -> bool:
        """Whether one more has to be turned away."""
        return len(self._tasks) >= MAX_INBOUND

    @property
    def crowded(self) -> bool:
        """Whether many callers are not proven yet."""
        return len(self._unproven) >= MAX_PENDING_HANDSHAKES // 4

    def start(self, work: Coroutine[Any, Any, None]) -> BackgroundTask:
        """Run `work` in a task of its own."""
        task = BackgroundTask("serving a channel", work, log, self._finished)
        self._tasks[task] = None
        return task

    def start_unproven(self, work: Coroutine[Any, Any, None], source: str = "") -> BackgroundTask:
        """The same for a handshake, which calls `proven` when it is through.

        With too many, the oldest of the source that has most is cancelled.
        """
        task = self.start(work)
        oldest = self._unproven.enter(task.task, source)
        if oldest is not None:
            oldest.cancel()
        return task

    def proven(self) -> None:
        """The current task's caller is known now."""
        task = asyncio.current_task()
        if task is not None:
            self._unproven.leave(task)

    def _finished(self, task: BackgroundTask) -> None:
        self._tasks.pop(task, None)
        self._unproven.leave(task.task)

    async def close(self) -> None:
        """Cancel all of them and wait until they are gone."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        for task in tasks:
            await task.wait()


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
