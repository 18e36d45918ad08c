"""The exchange of records, and peers that fall silent in it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from shoal.clock import SYSTEM_CLOCK
from shoal.errors import ChannelClosed, ServerFull
from shoal.protocol.messages import RecordBatch, RecordDigest
from shoal.swarm.directory import exchange
from shoal.swarm.directory.directory import MAX_EXCHANGES_PER_MINUTE, Directory
from shoal.swarm.identity import Identity
from shoal.transport.channel import Channel
from shoal.transport.frame_channel import FrameChannel
from shoal.transport.memory_transport import MemoryNetwork, MemoryTransport
from tests.records import signed_record


@pytest.fixture
async def ends() -> AsyncIterator[tuple[FrameChannel, FrameChannel]]:
    """The two ends of one channel."""
    network, accepted = MemoryNetwork(), asyncio.Queue[Channel]()
    me, peer = (Identity.generate().peer for _ in range(2))
    one, two = MemoryTransport(me, network), MemoryTransport(peer, network)

    async def accept(channel: Channel) -> None:
        await accepted.put(channel)
        await asyncio.Event().wait()

    await two.listen(accept)
    dialled = await one.dial(peer, two.addresses[0])
    yield FrameChannel(dialled), FrameChannel(await accepted.get())
    await one.close()
    await two.close()


def holding(*identities: Identity) -> Directory:
    """A directory with a record of each."""
    directory = Directory(SYSTEM_CLOCK)
    for identity in identities:
        directory.add(signed_record(identity).data)
    return directory


async def test_both_sides_learn_what_they_lack(ends: tuple[FrameChannel, FrameChannel]) -> None:
    """One exchange is enough."""
    one, two = (holding(Identity.generate()) for _ in range(2))
    asking = asyncio.ensure_future(exchange.ask(ends[0], one))
    _, digest = await ends[1].expect(RecordDigest)
    assert await exchange.answer(ends[1], two, digest) == 1
    assert await asking == 1
    assert one.digest() == two.digest()


async def test_a_silent_peer_holds_nobody_up(ends: tuple[FrameChannel, FrameChannel]) -> None:
    """Neither who asks nor who answers waits for ever."""
    with pytest.raises(ChannelClosed, match="exchange records"):
        await exchange.ask(ends[0], holding(), timeout_s=0.05)
    await ends[1].expect(RecordDigest)
    with pytest.raises(ChannelClosed, match="exchange records"):
        await exchange.answer(ends[1], holding(), b"", timeout_s=0.05)


async def test_who_asks_too_often_is_told_to_wait(ends: tuple[FrameChannel, FrameChannel]) -> None:
    """Before anything is looked up or sent."""
    directory = holding()
    for _ in range(MAX_EXCHANGES_PER_MINUTE):
        await ends[0].send(RecordBatch())
        await exchange.answer(ends[1], directory, b"")
        await ends[0].expect(RecordBatch)
    with pytest.raises(ServerFull):
        await exchange.answer(ends[1], directory, b"")
