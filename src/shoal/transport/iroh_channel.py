"""One bidirectional QUIC stream of an iroh connection as a channel."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from shoal.errors import ChannelClosed, ProtocolError
from shoal.transport.channel import CLOSE_MOST_S, CLOSE_TIMEOUT_S, SEND_BUFFER_BYTES
from shoal.transport.inbox import Inbox, InboxChannel
from shoal.transport.iroh_credit import (
    HEADER_BYTES,
    MAX_RECORD_BYTES,
    WINDOW_BYTES,
    WINDOW_RECORDS,
    ReadCredit,
    RecordDecoder,
    SendWindow,
    encode_record,
)
from shoal.transport.iroh_native import contained, failure_text, load_iroh
from shoal.types import PeerId

READ_BYTES = MAX_RECORD_BYTES + HEADER_BYTES
ABORTED = 1
"""The QUIC error code of a channel that was dropped."""


class IrohChannel(InboxChannel):
    """A stream with one task that always reads it and one that writes what has been sent.

    Every awaited call into iroh costs some 0.1 ms, so the reader takes what there is and the writer puts everything that
    waits into one record. Create it within a running loop; `ended` is called when all is over.
    """

    transport = "iroh"

    def __init__(
        self,
        peer: PeerId,
        connection: Any,
        stream: Any,
        ended: Callable[[IrohChannel], Awaitable[None]],
        host: str = "",
    ) -> None:
        super().__init__(Inbox(delivered=self._delivered))
        self.peer = peer
        self.host = host
        self._failure: type[Exception] = load_iroh().IrohError
        self._connection = connection  # iroh closes a connection that nobody holds
        self._sender: Any = stream.send()
        self._receiver: Any = stream.recv()
        self._outgoing = bytearray()
        self._window, self._credit = SendWindow(), ReadCredit()
        self._closed = False  # no more may be sent
        self._wake, self._writable = asyncio.Event(), asyncio.Event()
        self._writable.set()
        self._reader = asyncio.create_task(contained(self._read_all))
        self._writer = asyncio.create_task(contained(self._write_all))
        self._end = asyncio.create_task(contained(self._until_ended, ended))

    @property
    def writable(self) -> bool:
        """Channel: open, and the writer has not too much."""
        return not self._closed and len(self._outgoing) <= SEND_BUFFER_BYTES

    def write(self, data: bytes | bytearray) -> None:
        """Channel: hand over to the writer."""
        if self._closed:
            raise ChannelClosed("the channel is closed")
        self._outgoing += data
        self._wake.set()

    async def drain(self) -> None:
        """Channel: wait while the writer has too much."""
        if len(self._outgoing) > SEND_BUFFER_BYTES and not self._closed:
            self._writable.clear()
            await self._writable.wait()
        if self._closed:
            raise ChannelClosed("the channel closed while it was sending")

    async def close(self) -> None:
        """Channel: flush and end."""
        self._stop_sending()
        try:
            now = asyncio.get_running_loop().time
            until = now() + CLOSE_MOST_S
            while not self._writer.done() and now() < until:
                before = self._window.progress
                await asyncio.wait([self._writer], timeout=min(CLOSE_TIMEOUT_S, until - now()))
                if self._window.progress == before:
                    break
            self.abort()
            await asyncio.wait([self._end])
        except asyncio.CancelledError:
            self.abort()
            raise

    def abort(self) -> None:
        """Channel: drop at once; telling the other side goes on in the background."""
        self._stop_sending()
        self._inbox.drop(ChannelClosed("the channel was dropped"))
        self._reader.cancel()
        self._writer.cancel()

    async def wait_ended(self) -> None:
        """Wait until the stream is gone on this side."""
        await asyncio.wait([self._end])

    def _stop_sending(self) -> None:
        self._closed = True
        self._wake.set()
        self._writable.set()

    async def _read_all(self) -> None:
        """Take everything that comes: what the other side may send is bounded by this side's credit."""
        decoder = RecordDecoder()
        error: ChannelClosed | None = None
        try:
            while piece := await self._receiver.read(READ_BYTES):
                self._take(*decoder.feed(piece))
            if not decoder.between_records:
                error = ChannelClosed("the stream ended within a record")
        except self._failure as cause:
            error = ChannelClosed(f"the connection broke: {failure_text(cause)}")
        except ProtocolError as cause:
            error = ChannelClosed(f"peer {self.peer[:8]} broke the rules of its stream: {cause}")
        self._inbox.end(error)
        self._outgoing.clear()  # who has finished reads no more either
        self._stop_sending()

    def _take(self, data: bytes, credit: int, sizes_bytes: list[int]) -> None:
        self._window.credit(credit)
        self._credit.arrived(sizes_bytes)
        if len(self._inbox) + len(data) > WINDOW_BYTES:
            raise ProtocolError(f"more than {WINDOW_BYTES} bytes without credit")
        if data:
            self._inbox.put(data)
        if self._credit.unread_records > WINDOW_RECORDS:
            raise ProtocolError(f"more than {WINDOW_RECORDS} records without credit")
        self._wake.set()

    def _delivered(self, size_bytes: int) -> None:
        self._credit.read(size_bytes)
        if self._credit.due:
            self._wake.set()

    def _next_record(self) -> bytes | None:
        size = self._window.allowed(len(self._outgoing))
        if not size and not self._credit.due:
            return None
        with memoryview(self._outgoing) as view, view[:size] as data:
            record = encode_record(data, self._credit.take())
        del self._outgoing[:size]
        self._window.sent(size)
        return record

    async def _write_all(self) -> None:
        try:
            while self._outgoing or not self._closed:
                record = self._next_record()
                if record is not None:
                    await self._sender.write_all(record)
                else:
                    self._wake.clear()
                    await self._wake.wait()
                if len(self._outgoing) <= SEND_BUFFER_BYTES:
                    self._writable.set()
            await self._sender.finish()
            await self._until_taken()
        except self._failure:
            self._stop_sending()  # the reader learns why

    async def _until_taken(self) -> None:
        """Wait until the other side has acknowledged everything, or has finished too, which is often sooner."""
        acknowledged = asyncio.create_task(contained(self._sender.stopped))
        try:
            await asyncio.wait([acknowledged, self._reader], return_when=asyncio.FIRST_COMPLETED)
        finally:
            acknowledged.cancel()
            await asyncio.gather(acknowledged, return_exceptions=True)

    async def _until_ended(self, ended: Callable[[IrohChannel], Awaitable[None]]) -> None:
        await asyncio.wait([self._reader, self._writer])
        with suppress(self._failure):  # what has ended already cannot be reset
            await self._sender.reset(ABORTED)
        with suppress(self._failure):
            await self._receiver.stop(ABORTED)
        self._connection = self._sender = self._receiver = None  # see shoal.transport.iroh_native
        await ended(self)
