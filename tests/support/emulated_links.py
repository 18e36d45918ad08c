"""Emulated paths: any transport with delay, jitter, a rate, loss and partitions on each one-way link.

Wrap both ends: each side shapes what it sends. Time comes from a clock and chance from a generator, so that with the memory
transport and a virtual clock a run is exact and repeatable; with real transports the emulation adds to the real path.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import Random

from shoal.clock import Clock
from shoal.errors import ChannelClosed
from shoal.transport.channel import (
    CLOSE_TIMEOUT_S,
    SEND_BUFFER_BYTES,
    Channel,
    ChannelHandler,
    ForwardingChannel,
    ForwardingTransport,
    Transport,
)
from shoal.transport.inbound_tasks import serve
from shoal.transport.inbox import Inbox, InboxChannel
from shoal.types import PeerId
from tests.support.link_plan import EmulatedLink, LinkPlan

HANDSHAKE_ROUND_TRIPS = 3
"""TCP, TLS, and the nonce with its answer."""


@dataclass(frozen=True, slots=True)
class _Path:
    """One way from here to a peer."""

    me: PeerId
    peer: PeerId
    plan: LinkPlan
    clock: Clock
    rng: Random

    @property
    def link(self) -> EmulatedLink:
        return self.plan.link(self.me, self.peer)

    def arrival(self, size_bytes: int) -> float:
        left = self.plan.departure(self.me, self.peer, size_bytes, self.clock.monotonic())
        return left + self.link.travel_s(size_bytes, self.rng)

    async def until(self, arrival: float) -> None:
        wait_s = arrival - self.clock.monotonic()
        if wait_s > 0:
            await self.clock.sleep(wait_s)
        await self.plan.until_up(self.me, self.peer)


class LinkedChannel(InboxChannel, ForwardingChannel):
    """A channel whose written bytes take their time; what it receives has been shaped by the other side.

    It is the sink of the wrapped channel. One task of its own writes into that channel, another ends it; both end with it.
    """

    def __init__(self, inner: Channel, path: _Path, ended: Callable[[LinkedChannel], None]) -> None:
        InboxChannel.__init__(self, Inbox(inner.pause_reading, inner.resume_reading))
        ForwardingChannel.__init__(self, inner)
        self._ended = ended
        self._path = path
        self._queue: deque[tuple[float, bytes]] = deque()
        self._queued_bytes = 0
        self._last_arrival = 0.0
        self._closed = False
        self._wake, self._room = asyncio.Event(), asyncio.Event()
        self._pump = asyncio.create_task(self._deliver())
        self._end: asyncio.Task[None] | None = None
        inner.attach(self)

    def data_received(self, data: bytes) -> None:
        """ChannelSink: bytes that have come through the link."""
        self._inbox.put(data)

    def connection_lost(self, error: Exception | None) -> None:
        """ChannelSink: the end, unless it has ended here."""
        self._inbox.end(error)

    @property
    def writable(self) -> bool:
        """Channel: open, and there is room in the send buffer and on the link."""
        return self._open and self._queued_bytes <= SEND_BUFFER_BYTES + self._path.link.in_flight_bytes

    @property
    def _open(self) -> bool:
        return not self._closed and not self._pump.done()

    def write(self, data: bytes | bytearray) -> None:
        """Channel: put on the link."""
        if not self._open:
            raise ChannelClosed("the channel is closed")
        self._last_arrival = max(self._last_arrival, self._path.arrival(len(data)))  # order is kept
        self._queue.append((self._last_arrival, bytes(data)))
        self._queued_bytes += len(data)
        self._wake.set()

    async def drain(self) -> None:
        """Channel: wait while too much is on its way."""
        while self._open and not self.writable:
            self._room.clear()
            await self._room.wait()
        if not self._open:
            raise ChannelClosed("the channel closed while it was sending")

    async def _deliver(self) -> None:
        try:
            while self._queue or not self._closed:
                if not self._queue:
                    self._wake.clear()
                    await self._wake.wait()
                    continue
                arrival, data = self._queue[0]
                await self._path.until(arrival)
                self._inner.write(data)
                await self._inner.drain()
                self._queue.popleft()
                self._queued_bytes -= len(data)
                self._room.set()
        except ChannelClosed:
            self._queue.clear()  # the sink learns why
        finally:
            self._room.set()

    async def close(self) -> None:
        """Channel: let everything arrive, then end."""
        self._closed = True
        self._wake.set()
        patience_s = max(0.0, self._last_arrival - self._path.clock.monotonic()) + CLOSE_TIMEOUT_S
        timer = asyncio.create_task(self._path.clock.sleep(patience_s))
        await asyncio.wait([self._pump, timer], return_when=asyncio.FIRST_COMPLETED)
        timer.cancel()
        if not self._pump.done():
            self.abort()
        self._drop_here()
        if self._end is None:
            self._end = asyncio.create_task(self._end_there(self._inner.close))

    def abort(self) -> None:
        """Channel: drop at once here; the other side learns of it when the link carries the news."""
        self._closed = True
        self._pump.cancel()
        self._room.set()
        self._drop_here()
        if self._end is None:
            self._end = asyncio.create_task(self._end_there(_nothing))

    async def wait_ended(self) -> None:
        """Wait until the other side has been told too."""
        if self._end is not None:
            await asyncio.wait([self._end])

    def discard(self) -> list[asyncio.Task[None]]:
        """End it on both sides now, whatever the link; returns what is still to be waited for."""
        self.abort()
        if self._end is not None:
            self._end.cancel()
        return [task for task in (self._pump, self._end) if task is not None]

    def _drop_here(self) -> None:
        self._inbox.drop(ChannelClosed("the channel was dropped"))

    async def _end_there(self, finish: Callable[[], Awaitable[None]]) -> None:
        try:
            await self._path.until(self._path.arrival(0))
            await finish()
        finally:
            self._inner.abort()
            self._ended(self)


async def _nothing() -> None:
    """For an end without a flush."""


class LinkedTransport(ForwardingTransport):
    """A transport of node `me` whose channels and dials go over the links of a plan."""

    def __init__(self, inner: Transport, me: PeerId, plan: LinkPlan, clock: Clock, rng: Random) -> None:
        super().__init__(inner)
        self._me = me
        self._plan = plan
        self._clock = clock
        self._rng = rng
        self._channels: set[LinkedChannel] = set()

    def _wrap(self, inner: Channel) -> LinkedChannel:
        path = _Path(self._me, inner.peer, self._plan, self._clock, self._rng)
        channel = LinkedChannel(inner, path, self._channels.discard)
        self._channels.add(channel)
        return channel

    async def listen(self, handler: ChannelHandler) -> None:
        """Transport: accept through the wrapped one."""

        async def handle(inner: Channel) -> None:
            channel = self._wrap(inner)
            try:
                await serve(channel, handler)
            finally:
                await channel.wait_ended()  # the wrapped transport closes its channel when this returns

        await self._inner.listen(handle)

    async def dial(self, peer: PeerId, address: str) -> LinkedChannel:
        """Transport: dial through the wrapped one, after the round trips of a handshake; a partition gives no answer."""
        for _ in range(HANDSHAKE_ROUND_TRIPS):
            for source, target in ((self._me, peer), (peer, self._me)):
                await self._clock.sleep(self._plan.link(source, target).travel_s(1, self._rng))
                await self._plan.until_up(source, target)
        return self._wrap(await self._inner.dial(peer, address))

    async def close(self) -> None:
        """Transport: stop accepting, end every channel."""
        tasks = [task for channel in list(self._channels) for task in channel.discard()]
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._inner.close()
