"""What nobody may open in an iroh connection: streams that are not read, whose bytes iroh would keep in memory."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any

from shoal.tasks import BackgroundTask
from shoal.transport.iroh_native import contained, load_iroh

log = logging.getLogger("shoal.transport")

FORBIDDEN = 2
"""The QUIC error code of a connection whose other end opened such a stream."""


class ConnectionGuard:
    """Ends a connection in which the other end opens a stream of one direction, or any stream where this side has dialled.

    QUIC lets it open a hundred of each before this side can say no, and each may hold more than a megabyte. The guard watches
    while somebody uses the connection: from `enter` on until each has left. iroh keeps a connection for as long as it is
    watched. Or use with `async with`, once.
    """

    def __init__(self, connection: Any, dialled: bool) -> None:
        self._users = 0
        waits = [connection.accept_uni, connection.accept_bi] if dialled else [connection.accept_uni]
        connection.set_max_concurrent_uni_streams(0)
        self._tasks = [
            BackgroundTask("watching a connection", contained(_end_at_the_first, wait, connection.close), log)
            for wait in waits
        ]

    def enter(self) -> None:
        """One more uses the connection."""
        self._users += 1

    async def leave(self) -> bool:
        """One less; returns whether nobody is left. Nothing of the connection is held here then."""
        self._users -= 1
        if self._users:
            return False
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        for task in tasks:
            await task.wait()
        return True

    async def __aenter__(self) -> None:
        self.enter()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.leave()


async def _end_at_the_first(wait: Callable[[], Any], end: Callable[[int, bytes], None]) -> None:
    with suppress(load_iroh().IrohError):  # the connection has ended
        await wait()
        end(FORBIDDEN, b"no such streams")
