"""Emulated links on a virtual clock: times are exact."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from random import Random

import pytest
import pytest_asyncio

from shoal.errors import ChannelClosed
from shoal.transport.byte_stream import ByteStream
from shoal.transport.channel import CLOSE_TIMEOUT_S, SEND_BUFFER_BYTES, Channel
from shoal.transport.memory_transport import MemoryNetwork, MemoryTransport
from shoal.types import PeerId
from tests.support.emulated_links import HANDSHAKE_ROUND_TRIPS, LinkedTransport
from tests.support.link_plan import RETRANSMIT_S, EmulatedLink, LinkPlan
from tests.support.virtual_clock import VirtualClock

A, B = PeerId("a" * 64), PeerId("b" * 64)


class World:
    """Two nodes, a plan of the links between them, and what B has received."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.plan = LinkPlan()
        network, rng = MemoryNetwork(), Random(1)
        self.a, self.b = (
            LinkedTransport(MemoryTransport(peer, network), peer, self.plan, self.clock, rng) for peer in (A, B)
        )
        self.arrived: list[tuple[float, bytes]] = []
        self.ends: list[tuple[float, str]] = []
        self.far: ByteStream

    async def _take(self, accepted: Channel) -> None:
        self.far = channel = ByteStream(accepted)
        try:
            while data := await channel.receive():
                self.arrived.append((self.clock.monotonic(), data))
            self.ends.append((self.clock.monotonic(), "clean"))
        except ChannelClosed:
            self.ends.append((self.clock.monotonic(), "broken"))
            raise

    async def connect(self) -> ByteStream:
        """A channel from A to B, with B's end in `far`."""
        await self.b.listen(self._take)
        channel = await self.clock.run(self.a.dial(B, f"memory://{B}"))
        await self.clock.settle()
        return ByteStream(channel)


@pytest_asyncio.fixture
async def world() -> AsyncIterator[World]:
    """Closed at the end."""
    made = World()
    yield made
    await made.clock.run(made.a.close())
    await made.clock.run(made.b.close())


async def test_delay(world: World) -> None:
    """Each direction has its own, and a dial takes the round trips of a handshake."""
    world.plan.set(A, B, EmulatedLink(delay_s=0.05), both=False)
    world.plan.set(B, A, EmulatedLink(delay_s=0.1), both=False)
    channel = await world.connect()
    assert world.clock.monotonic() == pytest.approx(HANDSHAKE_ROUND_TRIPS * 0.15)
    sent = world.clock.monotonic()
    await channel.send(b"there")
    await world.clock.advance(1.0)
    assert world.arrived == [(pytest.approx(sent + 0.05), b"there")]
    sent = world.clock.monotonic()
    await world.far.send(b"back")
    assert await world.clock.run(channel.receive()) == b"back"
    assert world.clock.monotonic() == pytest.approx(sent + 0.1)


async def test_rate_is_shared_by_channels(world: World) -> None:
    """Bytes of two channels on one link leave one after the other."""
    channels = [await world.connect(), ByteStream(await world.clock.run(world.a.dial(B, f"memory://{B}")))]
    world.plan.set(A, B, EmulatedLink(delay_s=0.5, rate_bytes_s=1000.0))
    began = world.clock.monotonic()
    for channel in channels:
        await channel.send(bytes(1000))
    await world.clock.advance(5.0)
    assert [at - began for at, _ in world.arrived] == [pytest.approx(1.5), pytest.approx(2.5)]


async def test_jitter_keeps_the_order(world: World) -> None:
    """However late one message is, the next does not overtake it."""
    channel = await world.connect()
    world.plan.set(A, B, EmulatedLink(delay_s=0.01, jitter_s=1.0))
    for index in range(50):
        await channel.send(b"%02d" % index)
        await world.clock.advance(0.01)
    await world.clock.advance(3.0)
    assert b"".join(data for _, data in world.arrived) == b"".join(b"%02d" % index for index in range(50))


async def test_loss_is_delay(world: World) -> None:
    """Nothing is missing; some messages take a retransmission or more longer."""
    channel = await world.connect()
    world.plan.set(A, B, EmulatedLink(delay_s=0.01, loss=0.3))
    late = 0
    for index in range(200):
        sent = world.clock.monotonic()
        await channel.send(b"%03d" % index)
        await world.clock.advance(5.0)
        at, data = world.arrived[-1]
        assert data == b"%03d" % index
        retransmissions = (at - sent - 0.01) / RETRANSMIT_S
        assert retransmissions == pytest.approx(round(retransmissions), abs=1e-6)
        late += retransmissions > 0.5
    assert 30 < late < 90


def test_loss_grows_with_the_size() -> None:
    """A message of many packets is more often hit than a small one; a path without loss never."""
    rng, link = Random(2), EmulatedLink(loss=0.01)
    small = sum(link.travel_s(100, rng) > 0 for _ in range(1000))
    large = sum(link.travel_s(140_000, rng) > 0 for _ in range(1000))
    assert small < 40 < 500 < large
    assert EmulatedLink().travel_s(10**9, rng) == 0.0


async def test_partition_stalls_and_heals(world: World) -> None:
    """Bytes wait for the link, in order, also those already on their way; nothing breaks by itself."""
    channel = await world.connect()
    world.plan.set(A, B, EmulatedLink(delay_s=0.1))
    await channel.send(b"on its way")
    world.plan.partition(A, B)
    await channel.send(b"after")
    await world.clock.advance(100.0)
    assert world.arrived == []
    world.plan.heal(A, B)
    await world.clock.advance(1.0)
    assert [data for _, data in world.arrived] == [b"on its way", b"after"]
    assert world.ends == []


async def test_partition_in_one_direction(world: World) -> None:
    """The way back may be open while the way there is not."""
    channel = await world.connect()
    world.plan.partition(A, B, both=False)
    await channel.send(b"lost for now")
    await world.far.send(b"heard")
    assert await world.clock.run(channel.receive()) == b"heard"
    await world.clock.advance(10.0)
    assert world.arrived == []


@pytest.mark.parametrize(("source", "target"), [(A, B), (B, A)])
async def test_dials_wait_for_the_link(world: World, source: PeerId, target: PeerId) -> None:
    """A partition in either direction gives a dial no answer, until it heals or the caller gives up."""
    await world.connect()
    world.plan.partition(source, target, both=False)
    dialling = asyncio.create_task(world.a.dial(B, f"memory://{B}"))
    await world.clock.advance(60.0)
    assert not dialling.done()
    world.plan.heal(source, target, both=False)
    await world.clock.advance(1.0)
    assert dialling.done()
    assert (await dialling).peer == B


async def test_back_pressure_counts_what_is_under_way(world: World) -> None:
    """A sender waits when its buffer and the link are full, and goes on as bytes arrive."""
    channel = await world.connect()
    world.plan.set(A, B, EmulatedLink(delay_s=1.0, rate_bytes_s=1_000_000.0))
    sent = 0

    async def send() -> None:
        nonlocal sent
        for _ in range(100):
            await channel.send(bytes(100_000))
            sent += 100_000

    sending = asyncio.create_task(send())
    await world.clock.advance(0.5)
    assert SEND_BUFFER_BYTES < sent <= SEND_BUFFER_BYTES + 1_000_000
    await world.clock.run(sending)
    await world.clock.advance(5.0)
    assert sum(len(data) for _, data in world.arrived) == 10_000_000


async def test_close_arrives_after_the_bytes(world: World) -> None:
    """The end takes as long as everything else."""
    channel = await world.connect()
    world.plan.set(A, B, EmulatedLink(delay_s=0.2))
    began = world.clock.monotonic()
    await channel.send(b"last")
    await world.clock.run(channel.close())
    await world.clock.advance(1.0)
    assert [data for _, data in world.arrived] == [b"last"]
    assert world.ends[0][1] == "clean"
    assert world.ends[0][0] - began >= 0.2


async def test_close_gives_up_on_a_partition(world: World) -> None:
    """A close that can flush nothing ends here in bounded time; there it is seen when the link heals."""
    channel = await world.connect()
    world.plan.partition(A, B)
    await channel.send(b"never")
    began = world.clock.monotonic()
    await world.clock.run(channel.close())
    assert world.clock.monotonic() - began <= CLOSE_TIMEOUT_S + 0.1
    await channel.close()
    await world.clock.advance(50.0)
    assert world.ends == []
    world.plan.heal(A, B)
    await world.clock.advance(1.0)
    assert [end for _, end in world.ends] == ["broken"]


async def test_abort_does_not_cross_a_partition(world: World) -> None:
    """Here a dropped channel is gone at once; the other side cannot know yet."""
    channel = await world.connect()
    world.plan.partition(A, B)
    waiting = asyncio.create_task(channel.receive())
    await world.clock.settle()
    channel.abort()
    with pytest.raises(ChannelClosed):
        await world.clock.run(waiting)
    with pytest.raises(ChannelClosed):
        await channel.send(b"x")
    await world.clock.advance(50.0)
    assert world.ends == []
    world.plan.heal(A, B)
    await world.clock.advance(1.0)
    assert [end for _, end in world.ends] == ["broken"]


async def test_links_can_change_while_in_use(world: World) -> None:
    """A new delay holds for what is sent from then on."""
    channel = await world.connect()
    world.plan.set(A, B, EmulatedLink(delay_s=0.1))
    await channel.send(b"slow")
    world.plan.set(A, B, EmulatedLink(delay_s=0.3))
    await channel.send(b"slower")
    began = world.clock.monotonic()
    await world.clock.advance(1.0)
    assert [(round(at - began, 6), data) for at, data in world.arrived] == [(0.1, b"slow"), (0.3, b"slower")]


async def test_the_default_link_does_nothing(world: World) -> None:
    """Without a plan bytes take no time, and names are those of the wrapped transport."""
    channel = await world.connect()
    await channel.send(b"now")
    await world.clock.settle()
    assert world.arrived == [(0.0, b"now")]
    assert (channel.transport, world.a.name, world.b.addresses) == ("memory", "memory", (f"memory://{B}",))
    assert world.plan.link(A, B).rate_bytes_s == math.inf
