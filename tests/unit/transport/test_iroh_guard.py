"""Streams that nobody reads: in a connection that came in, and in one that was dialled."""

from __future__ import annotations

import asyncio

import pytest

from shoal.errors import ChannelClosed
from shoal.transport.byte_stream import ByteStream
from shoal.transport.iroh_native import load_iroh
from shoal.transport.iroh_transport import ALPN, HELLO, IrohTransport
from shoal.types import peer_id
from tests.unit.transport.nodes import WAIT_S, Net, echo, read_exactly, until
from tests.unit.transport.strangers import Stranger, endpoint_of


async def test_a_stream_of_one_direction_ends_a_connection_that_came_in() -> None:
    """Nobody reads it, and iroh would keep what it brings. Others are served."""
    async with Net("iroh") as net:
        server = await net.server(echo)
        stranger = await Stranger.at(server)
        used = await stranger.stream(HELLO)
        one_way = await stranger.connection.open_uni()
        with pytest.raises(load_iroh().IrohError):
            async with asyncio.timeout(WAIT_S):
                while True:
                    await one_way.write_all(bytes(1000))
                    await asyncio.sleep(0.01)
        del used, one_way
        await stranger.close()
        channel = await net.node().dial(server)
        await channel.send(b"honest")
        assert await read_exactly(channel, 6) == b"honest"
        await channel.close()


@pytest.mark.parametrize("both_ways", [False, True])
async def test_no_stream_is_opened_towards_a_dialler(both_ways: bool) -> None:
    """Nobody there accepts one: its channels end, and the next dial makes another connection."""
    endpoint = await endpoint_of(ALPN)
    address = next(one for one in endpoint.bound_sockets() if one.startswith("127"))

    async def answer() -> None:
        incoming = await endpoint.accept_next()
        connection = await (await incoming.accept()).connect()
        stream = await connection.accept_bi()
        await stream.send().write_all(HELLO)
        opened = await (connection.open_bi() if both_ways else connection.open_uni())
        await (opened.send() if both_ways else opened).write_all(b"x")
        await connection.closed()

    async with Net("iroh") as net:
        client = net.node().transport
        assert isinstance(client, IrohTransport)
        answering = asyncio.create_task(answer())
        channel = ByteStream(await client.dial(peer_id(endpoint.id().to_bytes()), f"iroh://{address}"))
        with pytest.raises(ChannelClosed, match="broke"):
            async with asyncio.timeout(WAIT_S):
                await channel.receive()
        await answering
        await until(lambda: not client._connections)
        assert not client._guards
    await endpoint.close()


async def test_a_connection_is_watched_while_it_has_channels() -> None:
    """By one guard, which holds nothing of it when the last channel has ended."""
    async with Net("iroh") as net:
        server, client = await net.server(echo), net.node()
        assert isinstance(client.transport, IrohTransport)
        one, two = await client.dial(server), await client.dial(server)
        assert len(client.transport._guards) == 1
        await one.close()
        assert len(client.transport._guards) == 1
        await two.close()
        assert not client.transport._guards
