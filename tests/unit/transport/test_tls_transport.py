"""What is particular to TLS: addresses, hosts that are no nodes, sockets, the certificate."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from shoal.errors import ChannelClosed, DialError, IdentityError, UsageError
from shoal.transport.address import host_port
from shoal.transport.byte_stream import ByteStream
from shoal.transport.tls_transport import TlsTransport
from tests.unit.transport.nodes import WAIT_S, Net, Node, echo, read_exactly, until

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], None]


async def test_ipv6_loopback() -> None:
    """An IPv6 address is written with brackets and can be dialled as it is written."""
    async with Net("tls") as net:
        key = Ed25519PrivateKey.generate()
        server = Node(key, TlsTransport(key, listen="[::1]:0"))
        await server.transport.listen(lambda channel: echo(ByteStream(channel)))
        assert server.address.startswith("tls://[::1]:")
        channel = await net.node().dial(server)
        await channel.send(b"six")
        assert await read_exactly(channel, 3) == b"six"
        await server.transport.close()


async def test_host_names_can_be_dialled() -> None:
    """A name that the machine knows is as good as a number."""
    async with Net("tls") as net:
        server = await net.server(echo)
        port = host_port(server.address, "tls")[1]
        channel = await net.node().transport.dial(server.id, f"tls://localhost:{port}")
        await channel.close()


async def test_advertised_addresses_are_taken_as_given() -> None:
    """A mapped port is told to others instead of the bound one."""
    transport = TlsTransport(Ed25519PrivateKey.generate(), advertise=("tls://203.0.113.5:4433",))
    assert transport.addresses == ()
    await transport.listen(lambda channel: echo(ByteStream(channel)))
    assert transport.addresses == ("tls://203.0.113.5:4433",)
    await transport.close()


async def test_wildcard_is_advertised_as_hosts() -> None:
    """A node that listens everywhere names addresses that others can dial, never the wildcard."""
    transport = TlsTransport(Ed25519PrivateKey.generate(), listen="0.0.0.0:0")
    await transport.listen(lambda channel: echo(ByteStream(channel)))
    hosts = [host_port(address, "tls")[0] for address in transport.addresses]
    assert hosts
    assert "0.0.0.0" not in hosts
    await transport.close()


async def test_port_in_use() -> None:
    """A port that somebody has is a UsageError that names it."""
    async with Net("tls") as net:
        server = await net.server(echo)
        host, port = host_port(server.address, "tls")
        with pytest.raises(UsageError, match=rf"^cannot listen on [\d.]+:{port}: Address already in use$"):
            await TlsTransport(Ed25519PrivateKey.generate(), listen=f"{host}:{port}").listen(
                lambda channel: echo(ByteStream(channel))
            )


@pytest.mark.parametrize("host", ["a" * 300, "a..b", "\0", "999.1.1.1", "not a host", "xn--" + "é" * 70])
async def test_impossible_hosts(host: str) -> None:
    """A host name that cannot be one is a DialError, not a surprise."""
    async with Net("tls") as net:
        client = net.node()
        with pytest.raises(DialError):
            await client.transport.dial(client.id, f"tls://{host}:1")


async def test_an_address_is_said_once() -> None:
    """Where nothing listens, the system's word for that follows, without the address again."""
    async with Net("tls") as net:
        client = net.node()
        with pytest.raises(DialError) as caught:
            await client.transport.dial(client.id, "tls://127.0.0.1:1")
    assert str(caught.value) == "tls://127.0.0.1:1 does not answer: Connection refused"


def shouts(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A server that speaks first, and no TLS."""
    writer.write(b"220 mail.example.org ESMTP\r\n" * 50)


def hangs_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A server that wants nobody."""
    writer.transport.abort()


@pytest.mark.parametrize("behaviour", [shouts, hangs_up])
async def test_hosts_that_are_no_nodes(behaviour: Serve) -> None:
    """Somebody else's TCP port is a DialError."""
    async with Net("tls") as net, some_server(behaviour) as address:
        client = net.node()
        with pytest.raises(DialError):
            async with asyncio.timeout(WAIT_S):
                await client.transport.dial(client.id, address)


async def test_a_silent_host_waits_for_the_deadline() -> None:
    """A port that accepts and says nothing holds a dial until its caller gives up; nothing is left then."""
    async with Net("tls") as net, some_server(lambda reader, writer: None) as address:
        client = net.node()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await client.transport.dial(client.id, address)
        assert isinstance(client.transport, TlsTransport)
        await until(lambda: not getattr(client.transport, "_channels", None))


@contextlib.asynccontextmanager
async def some_server(behaviour: Serve) -> AsyncIterator[str]:
    """Any TCP server on loopback."""
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        behaviour(reader, writer)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield f"tls://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()
    for writer in writers:
        writer.transport.abort()
    await server.wait_closed()
    await asyncio.sleep(0)


async def test_handshakes_that_end_are_forgotten() -> None:
    """Wrong identities, on either side, leave no channel behind."""
    async with Net("tls") as net:
        server, client = await net.server(echo), net.node()
        for _ in range(3):
            with pytest.raises(IdentityError):
                await client.transport.dial(client.id, server.address)
        for node in (server, client):
            await until(lambda node=node: not getattr(node.transport, "_channels", None))


async def test_a_handlers_mistake_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """An error that is not ours ends the channel, and its trace is in the log."""

    async def wrong(channel: ByteStream) -> None:
        raise KeyError("a mistake")

    with caplog.at_level(logging.ERROR, "shoal"):
        async with Net("tls") as net:
            channel = await net.node().dial(await net.server(wrong))
            with contextlib.suppress(ChannelClosed):
                assert await channel.receive() == b""
            await until(lambda: caplog.records)
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [KeyError]
