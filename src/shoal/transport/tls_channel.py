"""One TLS connection as a channel."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from asyncio.sslproto import SSLProtocol
from collections.abc import Callable
from contextlib import AbstractContextManager

from shoal.errors import ChannelClosed
from shoal.transport.channel import CLOSE_MOST_S, CLOSE_TIMEOUT_S, HANDSHAKE_TIMEOUT_S, SEND_BUFFER_BYTES
from shoal.transport.inbox import Inbox, InboxChannel
from shoal.types import PeerId

FLUSH_POLL_S = 0.01
"""How often a closing channel looks whether its bytes have left; asyncio does not say when they do."""


READ_BYTES = 64 * 1024
"""Bytes that are read at once; a stranger has sent as many before any of them is looked at."""


class TlsLayer(SSLProtocol):
    """asyncio's TLS, which reads into a buffer that the channels of a transport share.

    The loop fills a buffer and hands it over in one call, so that no two channels need theirs at the same time. One of its own
    would cost each connection 256 KiB, however little is said on it.
    """

    max_size = 0  # while it is made: it allocates a buffer of this size

    def __init__(
        self,
        channel: asyncio.Protocol,
        context: ssl.SSLContext,
        server_side: bool,
        buffer: bytearray,
        turn: AbstractContextManager[None],
    ) -> None:
        loop = asyncio.get_running_loop()
        self._turn = turn
        self.secured: asyncio.Future[None] = loop.create_future()
        name = None if server_side else "shoal"  # asyncio wants one; nobody looks at it
        super().__init__(
            loop,
            channel,
            context,
            self.secured,
            server_side,
            name,
            call_connection_made=False,
            ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S,  # type: ignore[arg-type]  # seconds, in parts as well
        )
        self.max_size = len(buffer)  # type: ignore[misc]  # asyncio reads it from the instance
        self._ssl_buffer = buffer
        self._ssl_buffer_view = memoryview(buffer)

    def _do_handshake(self) -> None:
        with self._turn:
            super()._do_handshake()  # type: ignore[misc]  # asyncio's own, which its types do not tell

    async def start(self, raw: asyncio.Transport, received: bytes = b"") -> asyncio.Transport | None:
        """The transport above a paused connection after the handshake, None if that is gone. Raises OSError.

        `received` are the first bytes, if they were read before.
        """
        loop = asyncio.get_running_loop()
        raw.set_protocol(self)
        self._incoming.write(received)  # type: ignore[attr-defined]  # likewise
        steps = loop.call_soon(self.connection_made, raw), loop.call_soon(raw.resume_reading)
        try:
            await self.secured
        except BaseException:
            raw.close()
            for step in steps:
                step.cancel()
            raise
        return self._app_transport


class TlsChannel(InboxChannel, asyncio.Protocol):
    """The protocol above asyncio's TLS layer; `peer` is empty until the node at the other end has been proven."""

    transport = "tls"

    def __init__(self, raw: asyncio.Transport, ended: Callable[[TlsChannel], None], buffer: bytearray) -> None:
        super().__init__(Inbox(self._pause, self._resume))
        self.peer = PeerId("")
        self.host = str((raw.get_extra_info("peername") or ("",))[0])
        self._buffer = buffer
        self._raw = raw
        self._tls: asyncio.Transport | None = None
        self._ended = ended
        self._closing = False
        self._lost = asyncio.get_running_loop().create_future()
        self._writable = asyncio.Event()
        self._writable.set()

    async def secure(
        self,
        context: ssl.SSLContext,
        server_side: bool,
        turn: AbstractContextManager[None] | None = None,
        received: bytes = b"",
    ) -> None:
        """Do the TLS handshake, whose steps `turn` surrounds if it is given. Raises OSError when it fails.

        `received` are the connection's first bytes, if they were read before.
        """
        layer = TlsLayer(self, context, server_side, self._buffer, turn or contextlib.nullcontext())
        self._tls = await layer.start(self._raw, received)
        if self._tls is None:
            raise ConnectionResetError("the connection ended during the handshake")
        self._tls.set_write_buffer_limits(high=SEND_BUFFER_BYTES)

    def proven(self, peer: PeerId) -> None:
        """The node at the other end has shown that it has the key of `peer`."""
        self.peer = peer

    def certificate(self) -> bytes | None:
        """What the other side showed, as DER."""
        layer: ssl.SSLObject | None = self._tls.get_extra_info("ssl_object") if self._tls is not None else None
        return layer.getpeercert(binary_form=True) if layer is not None else None

    def data_received(self, data: bytes) -> None:
        """asyncio: bytes came."""
        self._inbox.put(data)

    def eof_received(self) -> bool:
        """asyncio: the other end has finished."""
        self._inbox.end()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio: the connection is gone."""
        self._tls = (
            None  # with OpenSSL's memory: the channel itself may be garbage that nobody collects for a long time
        )
        self._inbox.end(ChannelClosed(f"the connection broke: {exc}") if exc is not None else None)
        self._writable.set()
        if not self._lost.done():
            self._lost.set_result(None)
        self._ended(self)

    def pause_writing(self) -> None:
        """asyncio: the send buffer is full."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """asyncio: it has room again."""
        self._writable.set()

    def _pause(self) -> None:
        if self._tls is not None and not self._tls.is_closing():
            self._tls.pause_reading()

    def _resume(self) -> None:
        if self._tls is not None and not self._tls.is_closing():
            self._tls.resume_reading()

    @property
    def writable(self) -> bool:
        """Channel: open, and the buffer has room."""
        tls = self._tls
        return not self._closing and self._writable.is_set() and tls is not None and not tls.is_closing()

    def write(self, data: bytes | bytearray) -> None:
        """Channel: write."""
        tls = self._tls
        if self._closing or tls is None or tls.is_closing():
            raise ChannelClosed("the channel is closed")
        tls.write(data)

    async def drain(self) -> None:
        """Channel: wait while the buffer is full."""
        await self._writable.wait()
        if self._closing or self._tls is None or self._tls.is_closing():
            raise ChannelClosed("the channel closed while it was sending")

    async def close(self) -> None:
        """Channel: flush and end."""
        self._closing = True
        try:
            await self._flush()
            if self._tls is not None:
                self._tls.close()
                await asyncio.wait([self._lost], timeout=CLOSE_TIMEOUT_S)
        finally:
            self.abort()
        await self.wait_ended()

    async def _flush(self) -> None:
        """Wait until the kernel has everything, or nothing has moved for CLOSE_TIMEOUT_S, or CLOSE_MOST_S are over."""
        unsent, waited_s = self._unsent_bytes(), 0.0
        began = asyncio.get_running_loop().time()
        while unsent and waited_s < CLOSE_TIMEOUT_S and asyncio.get_running_loop().time() - began < CLOSE_MOST_S:
            await asyncio.wait([self._lost], timeout=FLUSH_POLL_S)
            before, unsent = unsent, self._unsent_bytes()
            waited_s = 0.0 if unsent < before else waited_s + FLUSH_POLL_S

    def _unsent_bytes(self) -> int:
        # Closing the TLS layer too early loses what the layer below has not written if the other side still sends.
        if self._tls is None or self._lost.done():
            return 0
        return self._raw.get_write_buffer_size() + self._tls.get_write_buffer_size()

    def abort(self) -> None:
        """Channel: drop at once."""
        self._closing = True
        self._inbox.drop(ChannelClosed("the channel was dropped"))
        self._raw.abort()
        if self._tls is None:  # then asyncio need not report the end
            self._ended(self)

    async def wait_ended(self) -> None:
        """Wait until the socket is closed."""
        if self._tls is not None:
            await asyncio.wait([self._lost])
