"""A channel for a task that waits for bytes, as in a handshake."""

from __future__ import annotations

import asyncio

from shoal.transport.channel import Channel
from shoal.transport.inbox import PAUSE_BYTES
from shoal.types import PeerId

RECEIVE_BYTES = 256 * 1024
"""The most that one `ByteStream.receive` returns."""


class ByteStream:
    """The sink of a channel that keeps bytes until they are read. One task may send and one receive at a time.

    The channel is paused while `pause_bytes` or more are kept.
    """

    def __init__(self, channel: Channel, pause_bytes: int = PAUSE_BYTES) -> None:
        self._channel = channel
        self._pause_bytes = pause_bytes
        self._unread = bytearray()
        self._paused = False
        self._ended = False
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        channel.attach(self)

    @property
    def channel(self) -> Channel:
        """The channel below."""
        return self._channel

    @property
    def peer(self) -> PeerId:
        """The node at the other end."""
        return self._channel.peer

    @property
    def transport(self) -> str:
        """The transport's name."""
        return self._channel.transport

    def data_received(self, data: bytes) -> None:
        """ChannelSink: keep bytes, and pause the channel when there are enough."""
        self._unread += data
        if len(self._unread) >= self._pause_bytes and not self._paused:
            self._paused = True
            self._channel.pause_reading()
        self._wake()

    def connection_lost(self, error: Exception | None) -> None:
        """ChannelSink: the end comes after what was kept."""
        self._ended, self._error = True, error
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def send(self, data: bytes | bytearray) -> None:
        """Write, then wait while the send buffer is full. Raises ChannelClosed when the channel has ended."""
        self._channel.write(data)
        await self._channel.drain()

    async def receive(self, limit_bytes: int = RECEIVE_BYTES) -> bytes:
        """The next 1 to `limit_bytes` bytes; empty at a clean end. Raises the error of a broken one."""
        while not self._unread:
            if self._error is not None:
                raise self._error
            if self._ended:
                return b""
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        with memoryview(self._unread) as view, view[:limit_bytes] as head:
            data = bytes(head)
        del self._unread[:limit_bytes]
        if self._paused and len(self._unread) <= self._pause_bytes // 2:
            self._paused = False
            self._channel.resume_reading()
        return data

    async def receive_exactly(self, count: int) -> bytes:
        """Just `count` bytes; raises EOFError when the end comes first, and what `receive` raises."""
        data = b""
        while len(data) < count:
            piece = await self.receive(count - len(data))
            if not piece:
                raise EOFError(f"the channel ended after {len(data)} of {count} bytes")
            data += piece
        return data

    def release(self) -> Channel:
        """Leave the channel, with what is unread, to another sink."""
        unread, self._unread = bytes(self._unread), bytearray()
        self._channel.detach(unread)
        return self._channel

    async def close(self) -> None:
        """Flush and end. Closing twice is harmless."""
        await self._channel.close()

    def abort(self) -> None:
        """Drop the channel at once."""
        self._channel.abort()
