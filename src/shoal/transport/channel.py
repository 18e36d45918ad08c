"""The seam between Shoal and the network: authenticated byte channels between two nodes.

A transport dials and accepts *channels*: ordered, reliable, encrypted byte streams whose other end is known by its node
key. Real ones are `tls.TlsTransport` and `iroh.IrohTransport`; `memory.MemoryTransport` serves tests, and
`links.LinkedTransport` wraps any of them with the faults of a real path.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol, runtime_checkable

from shoal.types import PeerId

RECEIVE_BYTES = 256 * 1024
"""The most that one `Channel.receive` returns."""

SEND_BUFFER_BYTES = 1024 * 1024
"""Unsent bytes at which `Channel.send` starts to wait."""

HANDSHAKE_TIMEOUT_S = 10.0
"""How long an accepted connection may take to prove who it is."""

MAX_PENDING_HANDSHAKES = 256
"""Unproven inbound connections kept at once; one more drops the oldest, since who is honest is through in no time."""

MAX_INBOUND = 4096
"""Inbound connections and streams of one transport; more are closed on arrival."""

CLOSE_TIMEOUT_S = 2.0
"""How long `Channel.close` waits without any progress in flushing before it drops the channel."""


class Channel(Protocol):
    """One authenticated, encrypted, ordered byte stream."""

    @property
    def peer(self) -> PeerId:
        """The node at the other end, proven by its key."""
        ...

    @property
    def transport(self) -> str:
        """The transport's name: "tls", "iroh" or "memory"."""
        ...

    async def send(self, data: bytes | bytearray) -> None:
        """Hand over bytes (one whole frame per call); waits while the send buffer is full.

        Raises ChannelClosed when the channel has ended.
        """
        ...

    async def receive(self) -> bytes:
        """The next 1 to RECEIVE_BYTES bytes; empty when the other end has finished.

        Raises ChannelClosed when the channel broke.
        """
        ...

    async def close(self) -> None:
        """Flush what was sent and end the channel. Closing twice is harmless."""
        ...

    def abort(self) -> None:
        """Drop the channel at once, from any state, without waiting."""
        ...


Tap = Callable[[bytes], bool]
"""Is shown bytes as they arrive and takes all of them (True) or none. What it raises, the channel's reader raises."""


@runtime_checkable
class PromptChannel(Channel, Protocol):
    """A channel that can do without a task's turn in between, in both directions: an event loop's turn costs more than the
    rest of a small message's way."""

    @property
    def sends_now(self) -> bool:
        """Whether the channel is open and `send` would not wait."""
        ...

    def send_now(self, data: bytes | bytearray) -> None:
        """As `send`, right after `sends_now`."""
        ...

    def tap(self, tap: Tap | None) -> None:
        """From now on show bytes to `tap` first, unless older ones wait for the reader."""
        ...


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
