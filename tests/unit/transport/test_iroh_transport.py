"""What is particular to iroh: sockets, connections, records, and what its binding must never be left with."""

from __future__ import annotations

import asyncio
import gc
import ipaddress
import socket
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from shoal.errors import ChannelClosed, DialError, IdentityError, UsageError
from shoal.transport.address import host_port
from shoal.transport.byte_stream import ByteStream
from shoal.transport.dialler import Dialler
from shoal.transport.iroh_channel import IrohChannel
from shoal.transport.iroh_transport import MAX_STREAMS, IrohTransport
from tests.unit.transport.nodes import Net, Node, echo, read_exactly


async def test_nothing_but_loopback_is_bound() -> None:
    """By default no socket is open to other machines, in neither address family."""
    async with Net("iroh") as net:
        server = await net.server(echo)
        transport = server.transport
        assert isinstance(transport, IrohTransport)
        bound = [host_port(address)[0] for address in transport._endpoint.bound_sockets()]
        assert bound
        assert all(ipaddress.ip_address(host).is_loopback for host in bound)
        assert transport._endpoint.addr().relay_url() is None


async def test_advertised_addresses_are_taken_as_given() -> None:
    """A mapped port is told to others instead of the bound one."""
    transport = IrohTransport(Ed25519PrivateKey.generate(), advertise=("iroh://203.0.113.5:4433",))
    await transport.listen(lambda channel: echo(ByteStream(channel)))
    assert transport.addresses == ("iroh://203.0.113.5:4433",)
    await transport.close()


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_relays_are_dialled_only_when_asked_for(scheme: str) -> None:
    """A record cannot make a node without relays contact the host that it names as one."""
    async with Net("iroh") as net:
        with socket.create_server(("127.0.0.1", 0)) as victim, pytest.raises(DialError, match="relay"):
            node = net.node()
            await node.transport.dial(node.id, f"iroh://{scheme}://127.0.0.1:{victim.getsockname()[1]}/")


async def test_port_in_use() -> None:
    """A port that somebody has is a UsageError that names it."""
    async with Net("iroh") as net:
        server = await net.server(echo)
        host, port = host_port(server.address, "iroh")
        second = IrohTransport(Ed25519PrivateKey.generate(), bind=f"{host}:{port}")
        with pytest.raises(UsageError, match=str(port)):
            await second.listen(lambda channel: echo(ByteStream(channel)))
        await second.close()


async def test_host_names_are_refused() -> None:
    """iroh has no names to look up, so none is looked up."""
    with pytest.raises(UsageError, match="numeric"):
        await IrohTransport(Ed25519PrivateKey.generate(), bind="localhost:0").listen(
            lambda channel: echo(ByteStream(channel))
        )


def connection_of(stream: ByteStream) -> Any:
    """The QUIC connection that carries a channel."""
    channel = stream.channel
    assert isinstance(channel, IrohChannel)
    return channel._connection


async def test_channels_share_a_connection() -> None:
    """The second channel to a peer is a stream in the first one's connection; the last one's end drops it."""
    async with Net("iroh") as net:
        server, client = await net.server(echo), net.node()
        one, two = await client.dial(server), await client.dial(server)
        assert connection_of(one) is connection_of(two)
        await one.close()
        await two.send(b"still here")
        assert await read_exactly(two, 10) == b"still here"
        await two.close()
        assert isinstance(client.transport, IrohTransport)
        assert not client.transport._connections


async def test_a_lost_connection_is_made_anew() -> None:
    """After the connection broke, its channels end and the next dial makes another."""
    async with Net("iroh") as net:
        server, client = await net.server(echo), net.node()
        one = await client.dial(server)
        connection_of(one).close(7, b"on purpose")
        with pytest.raises(ChannelClosed, match="broke"):
            await one.receive()
        two = await client.dial(server)
        await two.send(b"again")
        assert await read_exactly(two, 5) == b"again"


async def test_a_silent_connection_is_not_trusted() -> None:
    """A connection whose other end answers no more is passed over, as after a restart under the same key."""
    async with Net("iroh") as net:
        server, client = await net.server(echo), net.node()
        await client.dial(server)
        assert isinstance(server.transport, IrohTransport)
        await server.transport._tasks.close()  # the endpoint lives, but nobody is behind it
        restarted = Node(server.key, IrohTransport(server.key))
        await restarted.transport.listen(lambda channel: echo(ByteStream(channel)))
        channel = await client.dial(restarted)
        await channel.send(b"hello")
        assert await read_exactly(channel, 5) == b"hello"
        await restarted.transport.close()


async def test_more_streams_than_quic_allows_by_default() -> None:
    """One connection carries hundreds of channels at once."""
    async with Net("iroh") as net:
        server, client = await net.server(echo), net.node()
        assert MAX_STREAMS > 150
        channels = [await client.dial(server) for _ in range(150)]
        for channel in channels:
            await channel.send(b"x")
        for channel in channels:
            assert await read_exactly(channel, 1) == b"x"
            channel.abort()


async def test_no_answer_within_the_deadline() -> None:
    """Over UDP a dead address says nothing: the dialler's deadline names it."""
    async with Net("iroh") as net:
        client, nobody = net.node(), net.node()
        with pytest.raises(DialError, match=r"iroh://127\.0\.0\.1:9: no answer within 0\.1 s"):
            await Dialler([client.transport]).dial(nobody.id, ["iroh://127.0.0.1:9"], deadline_s=0.1)


async def test_iroh_objects_never_become_cyclic_garbage() -> None:
    """Whatever happens to channels and dials, the collector finds no iroh object: freeing one may hang the process."""
    gc.collect()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        await everything_that_ends()
        gc.collect()
        left = [type(found).__name__ for found in gc.garbage if type(found).__module__.startswith("iroh")]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
    assert left == []


async def everything_that_ends() -> None:
    """Channels, dials, handlers and transports that end in every way there is."""

    async def handler(channel: ByteStream) -> None:
        if (word := await channel.receive()) == b"fail":
            raise ChannelClosed("on purpose")
        await channel.send(word)
        await asyncio.sleep(60 if word == b"stay" else 0)

    async with Net("iroh") as net:
        server, client = await net.server(handler), net.node()
        for word, end in ((b"a", "close"), (b"b", "abort"), (b"fail", "read"), (b"stay", "close"), (b"stay", "keep")):
            channel = await client.dial(server)
            holder: list[object] = [channel]
            holder.append(holder)  # a channel in somebody's cycle
            await channel.send(word)
            waiting = asyncio.create_task(channel.receive())
            await asyncio.wait([waiting], timeout=0.05)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            if end == "close":
                await channel.close()
            elif end == "abort":
                channel.abort()
        await failing_dials(server, client, net.node())


async def failing_dials(server: Node, client: Node, stranger: Node) -> None:
    """Dials that find another key, are cancelled at once or later, or never get an answer."""
    errors: list[BaseException] = []
    for target, address, limit_s in (
        (stranger.id, server.address, 5.0),
        (server.id, server.address, 0.0),
        (server.id, server.address, 0.001),
        (stranger.id, "iroh://127.0.0.1:9", 0.05),
    ):
        try:
            async with asyncio.timeout(limit_s):
                (await client.transport.dial(target, address)).abort()
        except (IdentityError, TimeoutError) as error:
            errors.append(error)
    kept: list[object] = [errors, *errors]
    kept.append(kept)  # errors that somebody keeps, in a cycle
