"""A TLS connection as a channel. What every channel promises is in test_channel.py."""

from __future__ import annotations

import asyncio
import socket

import pytest

from shoal.errors import ChannelClosed
from shoal.transport.channel import SEND_BUFFER_BYTES
from shoal.transport.tls_channel import TlsChannel
from shoal.types import PeerId
from tests.unit.transport.nodes import Net, echo


async def test_protocol_and_socket() -> None:
    """TLS 1.3, without delay for small frames."""
    async with Net("tls") as net:
        channel = (await net.node().dial(await net.server(echo))).channel
        assert isinstance(channel, TlsChannel)
        assert channel._tls is not None
        assert channel._tls.get_extra_info("ssl_object").version() == "TLSv1.3"
        raw = channel._tls.get_extra_info("socket")
        assert raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


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
