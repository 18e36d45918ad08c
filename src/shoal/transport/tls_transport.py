"""Channels over TCP with TLS 1.3, one connection each (docs/wire.md, "Transports")."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
import weakref
from collections.abc import Callable
from typing import cast

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from shoal.errors import ChannelClosed, DialError, IdentityError, UsageError
from shoal.transport.address import host_port, join_host_port, local_hosts, source_network
from shoal.transport.byte_stream import ByteStream
from shoal.transport.channel import HANDSHAKE_TIMEOUT_S, MAX_PENDING_HANDSHAKES, ChannelHandler
from shoal.transport.inbound_tasks import InboundTasks, serve
from shoal.transport.node_key import node_peer
from shoal.transport.tls_certificate import certified_peer, client_context, server_context
from shoal.transport.tls_channel import READ_BYTES, TlsChannel
from shoal.types import PEER_ID_BYTES, PeerId

NONCE_BYTES = 32
SIGNATURE_BYTES = 64
PROOF_BYTES = PEER_ID_BYTES + SIGNATURE_BYTES

_LABEL = b"shoal tls client 1\0"


class _Plain(asyncio.Protocol):
    """A TCP connection before TLS: nothing is read from it yet."""

    def __init__(self, connected: Callable[[asyncio.Transport], None]) -> None:
        self._connected = connected

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        raw = cast(asyncio.Transport, transport)
        raw.pause_reading()
        self._connected(raw)


ACCEPTING_ROUNDS = 5
"""Turns of the event loop in which a connection that was made just before the end is turned away and closed."""


class TlsTransport:
    """TCP with TLS 1.3 for one node. `listen` is HOST:PORT; port 0 takes a free one."""

    name = "tls"

    def __init__(self, key: Ed25519PrivateKey, listen: str = "127.0.0.1:0", advertise: tuple[str, ...] = ()) -> None:
        self._key = key
        self._me = key.public_key().public_bytes_raw()
        self._listen = host_port(listen)
        self._advertise = advertise
        self._dialling_context = client_context()
        self._server: asyncio.Server | None = None
        self._channels: set[TlsChannel] = set()
        self._plain: weakref.WeakSet[asyncio.Transport] = weakref.WeakSet()
        self._tasks = InboundTasks()
        self._buffer = bytearray(READ_BYTES)
        self._closed = False
        self.addresses: tuple[str, ...] = ()

    async def listen(self, handler: ChannelHandler) -> None:
        """Transport: bind and accept."""
        host, port = self._listen
        context = server_context(self._key)

        def accepted(raw: asyncio.Transport) -> None:
            self._plain.add(raw)
            if self._tasks.full or self._closed:
                raw.abort()
                return
            where = source_network(str((raw.get_extra_info("peername") or ("",))[0]))
            task = self._tasks.start_unproven(self._serve(raw, context, handler), where)
            task.task.add_done_callback(lambda _: raw.abort())  # cancelled before it began, it would not close anything

        try:
            self._server = await asyncio.get_running_loop().create_server(
                lambda: _Plain(accepted), host, port, backlog=MAX_PENDING_HANDSHAKES
            )
        except (OSError, ValueError) as error:
            raise UsageError(f"cannot listen on {join_host_port(host, port)}: {_reason(error)}") from error
        numeric, bound = self._server.sockets[0].getsockname()[:2]  # a record names no hosts but numbers
        self.addresses = self._advertise or tuple(f"tls://{name}:{bound}" for name in local_hosts(numeric))

    async def _serve(self, raw: asyncio.Transport, context: ssl.SSLContext, handler: ChannelHandler) -> None:
        channel = self._channel(raw)
        try:
            async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
                await channel.secure(context, server_side=True)
                channel.proven(await self._prove(channel))
        except (OSError, EOFError, ChannelClosed, IdentityError, TimeoutError):
            return  # strangers get no explanation
        finally:
            if not channel.peer:
                channel.abort()
        self._tasks.proven()
        await serve(channel, handler)

    def _channel(self, raw: asyncio.Transport) -> TlsChannel:
        channel = TlsChannel(raw, self._channels.discard, self._buffer)
        self._channels.add(channel)
        return channel

    async def _prove(self, channel: TlsChannel) -> PeerId:
        """Ask the dialler for a signature over a fresh nonce; raises IdentityError."""
        nonce = os.urandom(NONCE_BYTES)
        stream = ByteStream(channel, PROOF_BYTES)
        await stream.send(nonce)
        proof = await stream.receive_exactly(PROOF_BYTES)
        stream.release()
        key, signature = proof[:PEER_ID_BYTES], proof[PEER_ID_BYTES:]
        peer = node_peer(key)
        try:
            Ed25519PublicKey.from_public_bytes(key).verify(signature, statement(nonce, self._me, key))
        except (InvalidSignature, ValueError) as error:
            raise IdentityError("the dialler does not have the key that it claims") from error
        return peer

    async def dial(self, peer: PeerId, address: str) -> TlsChannel:
        """Transport: connect, check the server's key, prove this side's."""
        host, port = host_port(address, scheme=self.name)
        if self._closed:
            raise UsageError("the TLS transport is closed")
        try:
            raw = await self._connect(host, port)
        except (OSError, ValueError) as error:  # ValueError: a host name that cannot be one
            raise DialError(f"{address} does not answer: {_reason(error)}") from error
        channel = self._channel(raw)
        try:
            await channel.secure(self._dialling_context, server_side=False)
            await self._authenticate(channel, peer)
        except (OSError, EOFError, ChannelClosed) as error:
            raise DialError(f"{address} ended the connection during the handshake: {_reason(error)}") from error
        finally:
            if not channel.peer:
                channel.abort()
        return channel

    async def _connect(self, host: str, port: int) -> asyncio.Transport:
        raw, _ = await asyncio.get_running_loop().create_connection(lambda: _Plain(self._dialled), host, port)
        return raw

    def _dialled(self, raw: asyncio.Transport) -> None:
        self._plain.add(raw)
        if self._closed:  # its dialler may not be there to see it
            raw.abort()

    async def _authenticate(self, channel: TlsChannel, peer: PeerId) -> None:
        found = certified_peer(channel.certificate())
        if found != peer:
            raise IdentityError(f"node {found[:8]} answered where {peer[:8]} was expected")
        stream = ByteStream(channel)
        nonce = await stream.receive_exactly(NONCE_BYTES)
        stream.release()
        channel.write(self._me + self._key.sign(statement(nonce, bytes.fromhex(peer), self._me)))
        channel.proven(peer)

    async def close(self) -> None:
        """Transport: stop accepting, end every channel."""
        self._closed = True
        server, self._server = self._server, None
        if server is not None:
            await _stop(server)
        await self._tasks.close()
        channels = list(self._channels)
        for channel in channels:
            channel.abort()
        for channel in channels:
            await channel.wait_ended()
        for raw in list(self._plain):  # those that are no channels yet
            raw.abort()
        for _ in range(ACCEPTING_ROUNDS):
            await asyncio.sleep(0)


def statement(nonce: bytes, acceptor: bytes, dialler: bytes) -> bytes:
    """What a dialler signs: the acceptor's nonce and both raw public keys, under a label of its own."""
    return _LABEL + nonce + acceptor + dialler


async def _stop(server: asyncio.Server) -> None:
    """Close a server after those whom it has accepted have become connections, which are then turned away.

    asyncio up to Python 3.11 loses the socket of one that was accepted, but is no connection yet when its server closes.
    """
    loop = asyncio.get_running_loop()
    for listening in server.sockets:
        with contextlib.suppress(NotImplementedError):  # not on Windows' loop
            loop.remove_reader(listening.fileno())
    for _ in range(ACCEPTING_ROUNDS):
        await asyncio.sleep(0)
    server.close()


def _reason(error: Exception) -> str:
    """Why nothing came of a connection; asyncio says the address once more."""
    number = error.errno if isinstance(error, OSError) else None
    return os.strerror(number) if number is not None and number > 0 else str(error)
