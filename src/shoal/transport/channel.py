"""The seam between Shoal and the network: authenticated byte channels between two nodes.

A transport dials and accepts *channels*: ordered, reliable, encrypted byte streams whose other end is known by its node
key. The real ones are `tls_transport.TlsTransport` and `iroh_transport.IrohTransport`; `memory_transport.MemoryTransport`
serves tests. A channel pushes what arrives into a sink, as asyncio's transports push into a protocol. `ByteStream` and
`FrameChannel` are sinks that let a task wait for what arrives instead.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from shoal.types import PeerId

SEND_BUFFER_BYTES = 256 * 1024
"""Unsent bytes above which a channel is not `writable`."""

HANDSHAKE_TIMEOUT_S = 10.0
"""How long an accepted connection may take to prove who it is."""

MAX_PENDING_HANDSHAKES = 256
"""Unproven inbound connections kept at once; one more drops an old one of the busiest source, since honest diallers are
through in no time."""

MAX_INBOUND = 4096
"""Inbound connections and streams of one transport; more are closed on arrival."""

CLOSE_TIMEOUT_S = 2.0
"""How long `Channel.close` waits without any progress in flushing before it drops the channel."""

CLOSE_MOST_S = 10.0
"""How long it waits in all: who reads a little now and then holds nobody up."""


class ChannelSink(Protocol):
    """Takes what arrives on a channel. Neither method may raise or wait."""

    def data_received(self, data: bytes) -> None:
        """The next bytes of the stream, at least one. They may come after `pause_reading` too."""
        ...

    def connection_lost(self, error: Exception | None) -> None:
        """No more bytes will come, once; `error` is None when the other end has finished cleanly."""
        ...


class Channel(Protocol):
    """One authenticated, encrypted, ordered byte stream."""

    @property
    def peer(self) -> PeerId:
        """The node at the other end, proven by its key."""
        ...

    @property
    def host(self) -> str:
        """The IP address at the other end; empty where none is known, as behind a relay."""
        ...

    @property
    def transport(self) -> str:
        """The transport's name: "tls", "iroh" or "memory"."""
        ...

    @property
    def writable(self) -> bool:
        """Whether the channel is open and its send buffer has room."""
        ...

    def attach(self, sink: ChannelSink) -> None:
        """Push into `sink` from now on, first what has arrived before it, and the end if that has come."""
        ...

    def detach(self, unused: bytes) -> None:
        """The sink leaves. Bytes that it was given and has not used go to the next one."""
        ...

    def pause_reading(self) -> None:
        """The sink has too much: hold back what comes."""
        ...

    def resume_reading(self) -> None:
        """The sink has room again; what was held back comes in a later turn of the event loop."""
        ...

    def write(self, data: bytes | bytearray) -> None:
        """Send bytes (one whole frame per call) without waiting. Raises ChannelClosed when the channel has ended."""
        ...

    async def drain(self) -> None:
        """Wait until the send buffer has room. Raises ChannelClosed when the channel has ended."""
        ...

    async def close(self) -> None:
        """Flush what was written and end the channel. Closing twice is harmless."""
        ...

    def abort(self) -> None:
        """Drop the channel at once, from any state, without waiting."""
        ...


class ForwardingChannel:
    """A channel around another one: what a subclass does not change, the inner one does."""

    def __init__(self, inner: Channel) -> None:
        self._inner = inner

    @property
    def peer(self) -> PeerId:
        """Channel: the node at the other end."""
        return self._inner.peer

    @property
    def host(self) -> str:
        """Channel: the address at the other end."""
        return self._inner.host

    @property
    def transport(self) -> str:
        """Channel: the inner transport's name."""
        return self._inner.transport

    @property
    def writable(self) -> bool:
        """Channel: as the inner one."""
        return self._inner.writable

    def attach(self, sink: ChannelSink) -> None:
        """Channel: push into this sink."""
        self._inner.attach(sink)

    def detach(self, unused: bytes) -> None:
        """Channel: the sink leaves."""
        self._inner.detach(unused)

    def pause_reading(self) -> None:
        """Channel: the sink has too much."""
        self._inner.pause_reading()

    def resume_reading(self) -> None:
        """Channel: the sink has room."""
        self._inner.resume_reading()

    def write(self, data: bytes | bytearray) -> None:
        """Channel: send bytes."""
        self._inner.write(data)

    async def drain(self) -> None:
        """Channel: wait for room."""
        await self._inner.drain()

    async def close(self) -> None:
        """Channel: flush and end."""
        await self._inner.close()

    def abort(self) -> None:
        """Channel: drop at once."""
        self._inner.abort()


ChannelHandler = Callable[[Channel], Awaitable[None]]
"""Serves one accepted channel; the transport runs it in a task of its own and closes the channel after it."""


class Transport(Protocol):
    """Dials and accepts channels for one node."""

    @property
    def name(self) -> str:
        """ "tls", "iroh" or "memory"; also the scheme of its addresses."""
        ...

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where others may dial this node, e.g. "tls://203.0.113.5:4433"; empty before `listen`."""
        ...

    async def listen(self, handler: ChannelHandler) -> None:
        """Start accepting. Raises UsageError when the address cannot be bound."""
        ...

    async def dial(self, peer: PeerId, address: str) -> Channel:
        """Open a channel to `peer` at one of its addresses; the caller sets the deadline.

        Raises DialError when nothing answers, IdentityError when another key does, UsageError for an address that is
        not of this transport.
        """
        ...

    async def close(self) -> None:
        """Stop accepting and end every channel. Closing twice is harmless."""
        ...


class ForwardingTransport:
    """A transport around another one: what a subclass does not change, the inner one does."""

    def __init__(self, inner: Transport) -> None:
        self._inner = inner

    @property
    def name(self) -> str:
        """Transport: the inner one's name."""
        return self._inner.name

    @property
    def addresses(self) -> tuple[str, ...]:
        """Transport: the inner one's addresses."""
        return self._inner.addresses

    async def listen(self, handler: ChannelHandler) -> None:
        """Transport: accept."""
        await self._inner.listen(handler)

    async def dial(self, peer: PeerId, address: str) -> Channel:
        """Transport: open a channel."""
        return await self._inner.dial(peer, address)

    async def close(self) -> None:
        """Transport: stop accepting, end every channel."""
        await self._inner.close()
