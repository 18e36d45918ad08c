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
from typing import Any

from shoal.clock import Clock
from shoal.errors import ChannelClosed
from shoal.transport.channel import CLOSE_TIMEOUT_S, SEND_BUFFER_BYTES, Channel, ChannelHandler, Transport
from shoal.transport.inbound_tasks import serve
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


class LinkedChannel:
    """A channel whose sent bytes take their time; what it receives has been shaped by the other side."""

    def __init__(self, inner: Channel, path: _Path, ended: Callable[[LinkedChannel], None]) -> None:
        self._inner = inner
        self._ended = ended
        self._path = path
        self._queue: deque[tuple[float, bytes]] = deque()
        self._queued_bytes = 0
        self._last_arrival = 0.0
        self._closed = False
        self._wake, self._writable = asyncio.Event(), asyncio.Event()
        self._dropped: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._receiving: asyncio.Task[bytes] | None = None
        self._pump = asyncio.create_task(self._deliver())
        self._end: asyncio.Task[None] | None = None

    @property
    def peer(self) -> PeerId:
        """Channel: the node at the other end."""
        return self._inner.peer

    @property
    def transport(self) -> str:
        """Channel: the wrapped transport's name."""
        return self._inner.transport

    async def send(self, data: bytes | bytearray) -> None:
        """Channel: put on the link, then wait while too much is on its way."""
        if self._closed or self._pump.done():
            raise ChannelClosed("the channel is closed")
        self._last_arrival = max(self._last_arrival, self._path.arrival(len(data)))  # order is kept
        self._queue.append((self._last_arrival, bytes(data)))
        self._queued_bytes += len(data)
        self._wake.set()
        while self._queued_bytes > SEND_BUFFER_BYTES + self._path.link.in_flight_bytes:
            self._writable.clear()
            await self._writable.wait()
            if self._closed or self._pump.done():
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
                await self._inner.send(data)
                self._queue.popleft()
                self._queued_bytes -= len(data)
                self._writable.set()
        except ChannelClosed:
            self._queue.clear()  # the reader learns why
        finally:
            self._writable.set()

    async def receive(self) -> bytes:
        """Channel: what has arrived."""
        if self._dropped.done():
            raise ChannelClosed("the channel was dropped")
        if self._receiving is None:  # else one that was cancelled, which may have bytes by now
            self._receiving = asyncio.create_task(self._inner.receive())
        either: list[asyncio.Future[Any]] = [self._receiving, self._dropped]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if self._dropped.done():
            raise ChannelClosed("the channel was dropped")
        received, self._receiving = self._receiving, None
        return received.result()

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
        if not self._dropped.done():
            self._dropped.set_result(None)
        if self._receiving is not None and not self._receiving.cancel() and not self._receiving.cancelled():
            self._receiving.exception()  # nobody will ask for it any more

    async def _end_there(self, finish: Callable[[], Awaitable[None]]) -> None:
        try:
            await self._path.until(self._path.arrival(0))
            await finish()
        finally:
            self._inner.abort()
            self._ended(self)


async def _nothing() -> None:
    """For an end without a flush."""


class LinkedTransport:
    """A transport of node `me` whose channels and dials go over the links of a plan."""

    def __init__(self, inner: Transport, me: PeerId, plan: LinkPlan, clock: Clock, rng: Random) -> None:
        self._inner = inner
        self._me = me
        self._plan = plan
        self._clock = clock
        self._rng = rng
        self._channels: set[LinkedChannel] = set()

    @property
    def name(self) -> str:
        """Transport: that of the wrapped one."""
        return self._inner.name

    @property
    def addresses(self) -> tuple[str, ...]:
        """Transport: those of the wrapped one."""
        return self._inner.addresses

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
