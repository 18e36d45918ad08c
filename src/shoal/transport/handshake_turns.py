"""Handshakes begin in turn, so that the event loop has time for those who are through."""

from __future__ import annotations

import asyncio
import time
from types import TracebackType

from shoal.clock import SYSTEM_CLOCK, Clock
from shoal.transport.handshake_queue import HandshakeQueue

TIMES = 2.0
"""A connection costs the event loop so many times what is measured: sockets, tasks and timers, beside the cryptography."""


class HandshakeTurn:
    """A handshake that may go on. `with turn:` stands around what the event loop computes for it, so that it is counted."""

    def __init__(self, queue: HandshakeQueue[asyncio.Future[None]], source: str) -> None:
        self._queue = queue
        self._source = source
        self._began = 0.0

    def __enter__(self) -> None:
        self._began = time.thread_time()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.spent(TIMES * (time.thread_time() - self._began))

    def spent(self, seconds: float) -> None:
        """This handshake has cost so many seconds of computing."""
        self._queue.spent(self._source, seconds)


class HandshakeTurns:
    """Gives turns to the handshakes of a node, one in each turn of the event loop at most."""

    def __init__(self, clock: Clock = SYSTEM_CLOCK) -> None:
        self._queue: HandshakeQueue[asyncio.Future[None]] = HandshakeQueue(clock)
        self._timer: asyncio.TimerHandle | None = None

    async def turn(self, source: str) -> HandshakeTurn:
        """Wait until it is the turn of a handshake from this source."""
        begins = asyncio.get_running_loop().create_future()
        self._queue.enter(begins, source)
        self._arrange()
        try:
            await begins
        finally:
            self._queue.leave(begins, source)
        return HandshakeTurn(self._queue, source)

    def _arrange(self) -> None:
        if self._timer is None and self._queue:
            self._timer = asyncio.get_running_loop().call_later(self._queue.wait_s(), self._begin)

    def _begin(self) -> None:
        self._timer = None
        if self._queue and not self._queue.wait_s():
            begins = self._queue.next()
            if not begins.done():  # its task was cancelled just now
                begins.set_result(None)
        self._arrange()
