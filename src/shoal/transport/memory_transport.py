"""Channels inside one process, for tests: the same manners as the real ones, no sockets."""

from __future__ import annotations

import asyncio
from collections import deque

from shoal.errors import ChannelClosed, DialError, IdentityError, UsageError
from shoal.transport.channel import SEND_BUFFER_BYTES, ChannelHandler, ChannelSink
from shoal.transport.inbound_tasks import InboundTasks, serve
from shoal.transport.inbox import Inbox
from shoal.types import PeerId


class MemoryChannel:
    """One end of a pair. What it writes reaches the other end's sink in a later turn of the event loop.

    Bytes under way count as unsent, as does what the other end holds back.
    """

    transport = "memory"

    def __init__(self, peer: PeerId) -> None:
        self.peer = peer
        self.source = ""
        self.other = self
        self.ended = False
        self._inbox = Inbox(delivered=self._delivered)
        self._coming: deque[bytes] = deque()
        self._unread_bytes = 0
        self._closed_by_other: tuple[ChannelClosed | None] | None = None
        self._scheduled = False
        self._writable = asyncio.Event()
        self._writable.set()

    @staticmethod
    def pair(dialler: PeerId, acceptor: PeerId) -> tuple[MemoryChannel, MemoryChannel]:
        """Both ends of a new channel: the dialler's and the acceptor's."""
        near, far = MemoryChannel(acceptor), MemoryChannel(dialler)
        near._join(far)
        far._join(near)
        return near, far

    def _join(self, other: MemoryChannel) -> None:
        self.other = other

    def attach(self, sink: ChannelSink) -> None:
        """Channel: push into this sink."""
        self._inbox.attach(sink)

    def detach(self, unused: bytes) -> None:
        """Channel: the sink leaves."""
        self._inbox.detach(unused)

    def pause_reading(self) -> None:
        """Channel: the sink has too much."""
        self._inbox.pause()

    def resume_reading(self) -> None:
        """Channel: the sink has room."""
        self._inbox.resume()

    @property
    def writable(self) -> bool:
        """Channel: open, and the other end has not too much unread."""
        return not self.ended and self.other._unread_bytes <= SEND_BUFFER_BYTES

    def write(self, data: bytes | bytearray) -> None:
        """Channel: on its way to the other end."""
        if self.ended:
            raise ChannelClosed("the channel is closed")
        self.other._come(bytes(data))

    async def drain(self) -> None:
        """Channel: wait while the other end has too much unread."""
        await asyncio.sleep(0)  # as with a socket, others get their turn
        while self.other._unread_bytes > SEND_BUFFER_BYTES and not self.ended:
            self._writable.clear()
            await self._writable.wait()
        if self.ended and self.other._unread_bytes:
            raise ChannelClosed("the channel closed while it was sending")

    def _come(self, data: bytes) -> None:
        self._coming.append(data)
        self._unread_bytes += len(data)
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._deliver)

    def _deliver(self) -> None:
        self._scheduled = False
        while self._coming:
            self._inbox.put(self._coming.popleft())
        if self._closed_by_other is not None:
            self._inbox.end(self._closed_by_other[0])

    def _delivered(self, size_bytes: int) -> None:
        self._unread_bytes -= size_bytes
        if self._unread_bytes <= SEND_BUFFER_BYTES:
            self.other._writable.set()

    async def close(self) -> None:
        """Channel: a clean end on both sides."""
        self._end_both(None)

    def abort(self) -> None:
        """Channel: a broken end on both sides."""
        self._inbox.drop(ChannelClosed("the channel was dropped"))
        self._end_both(ChannelClosed("the channel was dropped"))

    def _end_both(self, error: ChannelClosed | None) -> None:
        for end in (self, self.other):
            end._end(error)

    def _end(self, error: ChannelClosed | None) -> None:
        self.ended = True
        if self._closed_by_other is None:
            self._closed_by_other = (error,)
        self._writable.set()
        self._schedule()


class MemoryNetwork:
    """Connects the memory transports that share it."""

    def __init__(self) -> None:
        self.transports: dict[PeerId, MemoryTransport] = {}
        self._channels: list[tuple[PeerId, PeerId, MemoryChannel]] = []

    def connect(self, dialler: PeerId, acceptor: PeerId) -> tuple[MemoryChannel, MemoryChannel]:
        """A new pair of ends: the dialler's and the acceptor's."""
        near, far = MemoryChannel.pair(dialler, acceptor)
        self._channels = [entry for entry in self._channels if not entry[2].ended]
        self._channels.append((dialler, acceptor, near))
        return near, far

    def cut(self, one: PeerId, other: PeerId | None = None) -> int:
        """Break every channel between two nodes, or all those of one; returns how many there were."""
        count = 0
        for dialler, acceptor, channel in self._channels:
            ends = {dialler, acceptor}
            if not channel.ended and one in ends and (other is None or ends == {one, other}):
                channel.abort()
                count += 1
        return count


class MemoryTransport:
    """A node's place in a memory network; its address is "memory://" and its id."""

    name = "memory"

    def __init__(self, peer: PeerId, network: MemoryNetwork) -> None:
        self._peer = peer
        self._network = network
        self._handler: ChannelHandler | None = None
        self._tasks = InboundTasks()
        self._closed = False
        self.addresses: tuple[str, ...] = ()

    async def listen(self, handler: ChannelHandler) -> None:
        """Transport: be found."""
        self._handler = handler
        self._network.transports[self._peer] = self
        self.addresses = (f"memory://{self._peer}",)

    async def dial(self, peer: PeerId, address: str) -> MemoryChannel:
        """Transport: connect to whoever listens at the address, if it is the peer meant."""
        scheme, _, found = address.partition("://")
        if scheme != self.name or self._closed:
            raise UsageError(f"{address!r} cannot be dialled by a {'closed' if self._closed else 'memory'} transport")
        target = self._network.transports.get(PeerId(found))
        if target is None or target._handler is None or target._tasks.full:
            raise DialError(f"{address} does not answer")
        if found != peer:
            raise IdentityError(f"node {found[:8]} answered where {peer[:8]} was expected")
        near, far = self._network.connect(self._peer, peer)
        target._tasks.start(serve(far, target._handler))
        return near

    async def close(self) -> None:
        """Transport: be found no more, end every channel."""
        self._closed, self._handler = True, None
        if self._network.transports.get(self._peer) is self:
            del self._network.transports[self._peer]
        await self._tasks.close()
        self._network.cut(self._peer)
