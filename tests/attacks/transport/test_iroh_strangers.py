"""Peers at the iroh port that break the rules of its streams: only their own channel ends."""

from __future__ import annotations

import asyncio
import os
import struct
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from shoal.errors import ChannelClosed
from shoal.transport.byte_stream import ByteStream
from shoal.transport.iroh_credit import MAX_RECORD_BYTES, encode_record
from shoal.transport.iroh_native import load_iroh
from shoal.transport.iroh_transport import ALPN, HELLO
from tests.unit.transport.nodes import WAIT_S, Net, Node, read_exactly, until
from tests.unit.transport.strangers import Stranger


class Victim:
    """A listening node that echoes, and notes how each of its channels ended."""

    def __init__(self, net: Net) -> None:
        self.net = net
        self.ends: list[str] = []
        self.node: Node

    async def start(self) -> Victim:
        self.node = await self.net.server(self._handle)
        return self

    async def _handle(self, channel: ByteStream) -> None:
        try:
            while data := await channel.receive():
                await channel.send(data)
        except ChannelClosed as error:
            self.ends.append(str(error))
        else:
            self.ends.append("")

    async def serves_honest_clients(self) -> bool:
        channel = await self.net.node().dial(self.node)
        await channel.send(b"honest")
        answered = await read_exactly(channel, 6) == b"honest"
        await channel.close()
        return answered


async def stranger_at(victim: Victim, alpn: bytes = ALPN) -> Stranger:
    """A stranger with a connection to the victim."""
    return await Stranger.at(victim.node, alpn)


@pytest_asyncio.fixture
async def victim() -> AsyncIterator[Victim]:
    """A node under attack."""
    async with Net("iroh") as net:
        yield await Victim(net).start()


BROKEN_STREAMS = {
    "no record at all": os.urandom(5000),
    "an endless record": struct.pack("<II", 0xFFFFFFFF, 0),
    "a record one byte too long": struct.pack("<II", MAX_RECORD_BYTES + 1, 0),
    "credit for what was never sent": encode_record(b"", 1),
    "all the credit there is": encode_record(b"x", 0xFFFFFFFF),
}


@pytest.mark.parametrize("broken", BROKEN_STREAMS)
async def test_broken_records_end_the_channel(victim: Victim, broken: str) -> None:
    """What is not a record, or claims too much, ends that stream as broken and nothing else."""
    stranger = await stranger_at(victim)
    good = await stranger.stream(HELLO, encode_record(b"good", 0))
    bad = await stranger.stream(HELLO, BROKEN_STREAMS[broken])
    await until(lambda: victim.ends)
    assert "broke the rules" in victim.ends[0]
    assert await good.recv().read_exact(1 + 8 + 4) == HELLO + encode_record(b"good", len(b"good"))
    assert await victim.serves_honest_clients()
    del good, bad
    await stranger.close()


async def test_streams_cut_short(victim: Victim) -> None:
    """A stream that ends within a record is broken; one that ends between records is not."""
    stranger = await stranger_at(victim)
    for pieces, end in (((encode_record(b"abc", 0)[:-1],), "within a record"), ((), "")):
        count = len(victim.ends)
        stream = await stranger.stream(HELLO, *pieces)
        await stream.send().finish()
        await until(lambda count=count: len(victim.ends) > count)
        assert end in victim.ends[-1]
        assert bool(victim.ends[-1]) == bool(end)
        del stream
    await stranger.close()


async def test_wrong_hello(victim: Victim) -> None:
    """Streams that begin otherwise reach no handler."""
    stranger = await stranger_at(victim)
    wrong = await stranger.stream(b"\x01")
    assert await wrong.recv().read_exact(1) == HELLO
    async with asyncio.timeout(WAIT_S):
        assert await wrong.recv().read(1) == b""
    assert await victim.serves_honest_clients()
    assert victim.ends == [""]
    del wrong
    await stranger.close()


async def test_another_protocol_is_turned_away(victim: Victim) -> None:
    """A connection for anything else than Shoal is refused in the handshake."""
    with pytest.raises(load_iroh().IrohError):
        async with asyncio.timeout(WAIT_S):
            await stranger_at(victim, alpn=b"h3")
    assert await victim.serves_honest_clients()


async def test_a_swarm_of_idle_connections(victim: Victim) -> None:
    """Connections that open nothing cost nobody their place."""
    strangers = [await stranger_at(victim) for _ in range(20)]
    assert await victim.serves_honest_clients()
    for stranger in strangers:
        await stranger.close()
    assert await victim.serves_honest_clients()


async def test_thousands_of_tiny_records(victim: Victim) -> None:
    """Records of one byte, far more than may be unread, break nothing: they are read as they come."""
    stranger = await stranger_at(victim)
    stream = await stranger.stream(HELLO)
    sender = stream.send()
    reading = asyncio.create_task(stream.recv().read_exact(1 + 8 + 1))
    for _ in range(4000):
        await sender.write_all(encode_record(b"x", 0))
    assert (await reading)[:1] == HELLO
    assert await victim.serves_honest_clients()
    del stream, sender, reading
    await stranger.close()


async def test_connections_that_carry_nothing_end(victim: Victim, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that has opened nothing, and one whose channel is over; an open channel keeps its connection."""
    monkeypatch.setattr("shoal.transport.iroh_transport.IDLE_S", 0.2)
    idle, over, used = [await stranger_at(victim) for _ in range(3)]
    kept = await used.stream(HELLO, encode_record(b"one", 0))
    stream = await over.stream(HELLO)
    await stream.send().finish()
    del stream
    async with asyncio.timeout(WAIT_S):
        for stranger in (idle, over):
            await stranger.connection.closed()
    await kept.send().write_all(encode_record(b"two", 0))
    assert (await kept.recv().read_exact(1 + 2 * (8 + 3)))[-3:] == b"two"
    del kept
    for stranger in (idle, over, used):
        await stranger.close()
    assert await victim.serves_honest_clients()


async def test_idle_connections_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are: the oldest of the address that has most goes, so that no place is left to them for good."""
    monkeypatch.setattr("shoal.transport.inbound_tasks.MAX_PENDING_HANDSHAKES", 8)
    monkeypatch.setattr("shoal.transport.inbound_tasks.MAX_INBOUND", 16)
    async with Net("iroh") as net:
        victim = await Victim(net).start()
        strangers = [await stranger_at(victim) for _ in range(20)]
        assert await victim.serves_honest_clients()
        for stranger in strangers:
            await stranger.close()
