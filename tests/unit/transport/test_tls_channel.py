"""A TLS connection as a channel. What every channel promises is in test_channel.py."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from asyncio.sslproto import SSLProtocol

import pytest

from shoal.errors import ChannelClosed
from shoal.transport.byte_stream import ByteStream
from shoal.transport.channel import SEND_BUFFER_BYTES
from shoal.transport.tls_certificate import client_context
from shoal.transport.tls_channel import READ_BYTES, TlsChannel, TlsLayer
from shoal.types import PeerId
from tests.unit.transport.nodes import Net, echo


async def test_protocol_and_socket() -> None:
    """TLS 1.3, without delay for small frames, at both ends."""
    accepted = asyncio.get_running_loop().create_future()

    async def accept(stream: ByteStream) -> None:
        accepted.set_result(stream.channel)
        await echo(stream)

    async with Net("tls") as net:
        dialled = (await net.node().dial(await net.server(accept))).channel
        for channel in (dialled, await accepted):
            assert isinstance(channel, TlsChannel)
            assert channel._tls is not None
            assert channel._tls.get_extra_info("ssl_object").version() == "TLSv1.3"
            raw = channel._tls.get_extra_info("socket")
            assert raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_connections_share_one_buffer() -> None:
    """asyncio reads into it because fields of its own are set: a Python that keeps them elsewhere is to be seen here.

    It would still work, with 256 KiB more for each connection, which no budget counts (`TlsLayer`).
    """
    shared = bytearray(READ_BYTES)
    layer = TlsLayer(asyncio.Protocol(), client_context(), False, shared, contextlib.nullcontext())
    plain = SSLProtocol(asyncio.get_running_loop(), asyncio.Protocol(), client_context(), None, server_hostname="shoal")
    own = set(vars(plain))
    assert {"_ssl_buffer", "_ssl_buffer_view", "_app_transport"} <= own, "asyncio has renamed what TlsLayer sets"
    assert set(vars(layer)) - own == {"secured", "max_size", "_turn"}, "TlsLayer sets what asyncio does not know"
    for wanted in (-1, 1, READ_BYTES, 1 << 20):
        given = layer.get_buffer(wanted)
        assert isinstance(given, memoryview)
        assert given.obj is shared, "asyncio has taken a buffer of its own"
        assert len(given) == READ_BYTES
    for one in (layer, plain):
        one._app_transport.close()
    layer.secured.cancel()


class Raw:
    """A connection that only notes that it was dropped."""

    def __init__(self) -> None:
        self.aborted = False

    def get_extra_info(self, name: str) -> None:
        """asyncio.Transport: it is not known where this comes from."""

    def abort(self) -> None:
        """asyncio.Transport."""
        self.aborted = True


async def test_before_the_handshake_nothing_can_be_said() -> None:
    """The other end is not known, and has shown nothing; dropping it ends it at once."""
    raw, ended = Raw(), list[TlsChannel]()
    channel = TlsChannel(raw, ended.append, bytearray(8))  # type: ignore[arg-type]
    assert channel.peer == ""
    assert channel.certificate() is None
    assert not channel.writable
    with pytest.raises(ChannelClosed):
        channel.write(b"x")
    channel.abort()
    await channel.wait_ended()
    assert raw.aborted
    assert ended == [channel]


async def test_a_proof_names_the_other_end() -> None:
    """Once, when it has been checked."""
    channel = TlsChannel(Raw(), lambda channel: None, bytearray(8))  # type: ignore[arg-type]
    channel.proven(PeerId("ab" * 32))
    assert channel.peer == "ab" * 32


async def test_a_full_buffer_holds_the_sender_up() -> None:
    """As asyncio says it; the end of the connection lets the sender go."""
    async with Net("tls") as net:
        channel = (await net.node().dial(await net.server(echo))).channel
        assert isinstance(channel, TlsChannel)
        assert channel._tls is not None
        assert channel._tls.get_write_buffer_limits()[1] == SEND_BUFFER_BYTES
        channel.pause_writing()
        assert not channel.writable
        waiting = asyncio.create_task(channel.drain())
        await asyncio.sleep(0)
        assert not waiting.done()
        channel.resume_writing()
        await waiting
        assert channel.writable
        channel.pause_writing()
        waiting = asyncio.create_task(channel.drain())
        await asyncio.sleep(0)
        channel.abort()
        with pytest.raises(ChannelClosed, match="while it was sending"):
            await waiting


async def test_what_has_ended_holds_no_memory_of_openssl() -> None:
    """Whatever still holds the channel, which refuses to write and can be closed again."""
    async with Net("tls") as net:
        channel = (await net.node().dial(await net.server(echo))).channel
        assert isinstance(channel, TlsChannel)
        await channel.close()
        assert channel._tls is None
        with pytest.raises(ChannelClosed):
            channel.write(b"late")
        await channel.close()
