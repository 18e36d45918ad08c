"""A bounded buffer between whoever receives bytes and whoever reads them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from shoal.transport.channel import RECEIVE_BYTES, Tap

PAUSE_BYTES = 1024 * 1024
"""Unread bytes at which the source is asked to pause; it resumes at half."""


def _nothing() -> None:
    """For a source that needs no pauses."""


class Inbox:
    """Bytes in order, then an end: clean (no error) or broken. One reader at a time."""

    def __init__(self, pause: Callable[[], None] = _nothing, resume: Callable[[], None] = _nothing) -> None:
        self._buffer = bytearray()
        self._pause = pause
        self._resume = resume
        self._paused = False
        self._ended = False
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        self.tap: Tap | None = None

    def __len__(self) -> int:
        return len(self._buffer)

    def put(self, data: bytes) -> bool:
        """Append bytes that arrived; True when `tap` took them instead, to which they are shown if no older ones wait."""
        if self.tap is not None and not self._buffer:
            try:
                if self.tap(data):
                    return True
            except Exception as error:  # it is the reader's affair, who may want to say something to the other side
                self.tap = None
                self.end(error)
                return False
        self._buffer += data
        if len(self._buffer) >= PAUSE_BYTES and not self._paused:
            self._paused = True
            self._pause()
        self._wake()
        return False

    def end(self, error: Exception | None = None) -> None:
        """No more will come; the first call counts."""
        if not self._ended:
            self._ended, self._error = True, error
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def get(self, limit: int = RECEIVE_BYTES) -> bytes:
        """The next 1 to `limit` bytes; empty at a clean end. Raises the error of a broken one."""
        while not self._buffer:
            if self._error is not None:
                raise self._error
            if self._ended:
                return b""
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        with memoryview(self._buffer) as view, view[:limit] as head:
            data = bytes(head)
        del self._buffer[:limit]
        if self._paused and len(self._buffer) <= PAUSE_BYTES // 2:
            self._paused = False
            self._resume()
        return data

    async def get_exactly(self, count: int) -> bytes:
        """Just `count` bytes; raises EOFError when the end comes first, and what `get` raises."""
        data = b""
        while len(data) < count:
            piece = await self.get(count - len(data))
            if not piece:
                raise EOFError(f"the channel ended after {len(data)} of {count} bytes")
            data += piece
        return data
