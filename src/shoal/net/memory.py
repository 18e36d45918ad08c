"""Channels inside one process, for tests: the same manners as the real ones, no sockets."""

from __future__ import annotations

import asyncio

from shoal.errors import ChannelClosed, DialError, IdentityError, UsageError
from shoal.net.inbox import Inbox
from shoal.net.transport import ChannelHandler
from shoal.types import PeerId


class MemoryChannel:
    """One end of a pair; back-pressure is the other end's inbox."""

    transport = "memory"

    def __init__(self, peer: PeerId) -> None:
        self.peer = peer
        self.other: MemoryChannel | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._closed = False
        self.inbox = Inbox(lambda: self._pause_other(True), lambda: self._pause_other(False))

    def _pause_other(self, paused: bool) -> None:
        if self.other is not None:
            (self.other._writable.clear if paused else self.other._writable.set)()

    async def send(self, data: bytes | bytearray) -> None:
        """Channel: straight into the other end's inbox."""
        if self._closed or self.other is None or self.other._closed:
            raise ChannelClosed("the channel is closed")
        self.other.inbox.put(bytes(data))
        await self._writable.wait()
        await asyncio.sleep(0)
        if self._closed:
            raise ChannelClosed("the channel closed while it was sending")

    async def receive(self) -> bytes:
        """Channel: what has arrived."""
        return await self.inbox.get()

    async def close(self) -> None:
        """Channel: a clean end on both sides."""
        self._end(None)

    def abort(self) -> None:
        """Channel: a broken end on both sides."""
        self._end(ChannelClosed("the channel was dropped"))

    def _end(self, error: ChannelClosed | None) -> None:
        self._closed = True
        for end in (self, self.other):
            if end is not None:
                end.inbox.end(error)
                end._writable.set()


class MemoryNetwork:
    """Connects the memory transports that share it."""

    def __init__(self) -> None:
        self.transports: dict[PeerId, MemoryTransport] = {}
        self._channels: list[tuple[PeerId, PeerId, MemoryChannel]] = []

    def connect(self, dialler: PeerId, acceptor: PeerId) -> tuple[MemoryChannel, MemoryChannel]:
        """A new pair of ends: the dialler's and the acceptor's."""
        near, far = MemoryChannel(acceptor), MemoryChannel(dialler)
        near.other, far.other = far, near
        self._channels.append((dialler, acceptor, near))
        return near, far

    def cut(self, one: PeerId, other: PeerId) -> int:
        """Break every channel between two nodes; returns how many there were."""
        hit = [entry for entry in self._channels if {entry[0], entry[1]} == {one, other}]
        for entry in hit:
            entry[2].abort()
            self._channels.remove(entry)
        return len(hit)


class MemoryTransport:
    """A node's place in a memory network; its address is "memory://" and its id."""

    name = "memory"

    def __init__(self, peer: PeerId, network: MemoryNetwork) -> None:
        self._peer = peer
        self._network = network
        self._handler: ChannelHandler | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.addresses: tuple[str, ...] = ()

    async def listen(self, handler: ChannelHandler) -> None:
        """Transport: be found."""
        self._handler = handler
        self._network.transports[self._peer] = self
        self.addresses = (f"memory://{self._peer}",)

    async def dial(self, peer: PeerId, address: str) -> MemoryChannel:
        """Transport: connect to whoever listens at the address, if it is the peer meant."""
        scheme, _, found = address.partition("://")
        if scheme != self.name:
            raise UsageError(f"{address!r} is not a memory address")
        target = self._network.transports.get(PeerId(found))
        if target is None or target._handler is None:
            raise DialError(f"{address} does not answer")
        if found != peer:
            raise IdentityError(f"node {found[:8]} answered where {peer[:8]} was expected")
        near, far = self._network.connect(self._peer, peer)
        target._accept(far, target._handler)
        return near

    def _accept(self, channel: MemoryChannel, handler: ChannelHandler) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(channel, handler))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, channel: MemoryChannel, handler: ChannelHandler) -> None:
        try:
            await handler(channel)
        finally:
            if not channel._closed:
                await channel.close()

    async def close(self) -> None:
        """Transport: be found no more."""
        self._handler = None
        self._network.transports.pop(self._peer, None)
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
