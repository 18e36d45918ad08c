"""Channels over TCP with TLS 1.3, one connection each (docs/wire.md, "Transports")."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import ssl
import weakref
from collections.abc import Callable
from functools import partial
from typing import cast

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from shoal.errors import ChannelClosed, DialError, IdentityError, UsageError
from shoal.tasks import first_done
from shoal.transport.address import host_port, join_host_port, local_hosts, source_network
from shoal.transport.byte_stream import ByteStream
from shoal.transport.channel import HANDSHAKE_TIMEOUT_S, MAX_PENDING_HANDSHAKES, ChannelHandler
from shoal.transport.handshake_turns import HandshakeTurns
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


HELLO_BYTES = 4096
"""What is read of a stranger before its turn has come: a client's first flight fits, and honest ones send it at once."""

HANDSHAKE_RECORD = 22
"""The first byte of a TLS connection (RFC 8446, 5.1)."""

ACCEPTING_ROUNDS = 5
"""Turns of the event loop in which a connection that was made just before the end is turned away and closed."""

GONE_POLL_S = 0.2
"""How often a connection that waits for its turn is looked at: what a loop can wait for is read, and TLS needs it."""

NO_ACCEPT_S = 0.5
"""How long no connections are taken when one could not be, as when this process has no more file descriptors."""

log = logging.getLogger("shoal.transport")


class TlsTransport:
    """TCP with TLS 1.3 for one node. `listen` is HOST:PORT; port 0 takes a free one.

    What comes in waits for its turn in `turns`, which a node's transports share.
    """

    name = "tls"

    def __init__(
        self,
        key: Ed25519PrivateKey,
        listen: str = "127.0.0.1:0",
        advertise: tuple[str, ...] = (),
        turns: HandshakeTurns | None = None,
    ) -> None:
        self._key = key
        self._me = key.public_key().public_bytes_raw()
        self._listen = host_port(listen)
        self._advertise = advertise
        self._dialling_context = client_context()
        self._turns = turns or HandshakeTurns()
        self._listening: socket.socket | None = None
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
        try:
            self._listening = listening = await _bound(host, port)
        except (OSError, ValueError) as error:
            raise UsageError(f"cannot listen on {join_host_port(host, port)}: {_reason(error)}") from error
        numeric, bound = listening.getsockname()[:2]  # a record names no hosts but numbers
        self.addresses = self._advertise or tuple(f"tls://{name}:{bound}" for name in local_hosts(numeric))
        self._tasks.start(self._accept(listening, context, handler))

    async def _accept(self, listening: socket.socket, context: ssl.SSLContext, handler: ChannelHandler) -> None:
        """Take connections one by one: between two of them the event loop has a turn for everybody else."""
        while not self._closed:
            try:
                connection, (host, *_) = await asyncio.get_running_loop().sock_accept(listening)
            except OSError as error:
                log.warning("no connections are taken for a moment: %s", error)
                await asyncio.sleep(NO_ACCEPT_S)
                continue
            if self._tasks.full or self._closed:
                connection.close()
            else:
                source = source_network(str(host))
                task = self._tasks.start_unproven(self._serve(connection, source, context, handler), source)
                task.task.add_done_callback(partial(_close, connection))
            await asyncio.sleep(0)

    async def _serve(
        self, connection: socket.socket, source: str, context: ssl.SSLContext, handler: ChannelHandler
    ) -> None:
        try:
            async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
                channel = await self._welcome(connection, source, context)
        except (OSError, EOFError, ChannelClosed, IdentityError, TimeoutError):
            return  # strangers get no explanation
        self._tasks.proven()
        await serve(channel, handler)

    async def _welcome(self, connection: socket.socket, source: str, context: ssl.SSLContext) -> TlsChannel:
        """The handshake of one connection, when it is its turn. Nothing is spent on who says nothing, or speaks no TLS."""
        loop = asyncio.get_running_loop()
        hello = await loop.sock_recv(connection, HELLO_BYTES)
        if not hello or hello[0] != HANDSHAKE_RECORD:
            raise IdentityError("the dialler speaks no TLS")
        gone, turn = await first_done(self._turns.turn(source), _gone(connection))
        if gone:  # else those that hang up would keep the places of those that wait
            raise ConnectionResetError("the dialler has gone")
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # asyncio sees no TCP in what it did not bind
        raw, _ = await loop.connect_accepted_socket(lambda: _Plain(self._plain.add), connection)
        with turn:
            channel = self._channel(raw)
        try:
            await channel.secure(context, server_side=True, turn=turn, received=hello)
            nonce = os.urandom(NONCE_BYTES)
            stream = ByteStream(channel, PROOF_BYTES)
            await stream.send(nonce)
            proof = await stream.receive_exactly(PROOF_BYTES)
            stream.release()
            with turn:
                channel.proven(_proven(nonce, self._me, proof))
        finally:
            if not channel.peer:
                channel.abort()
        return channel

    def _channel(self, raw: asyncio.Transport) -> TlsChannel:
        channel = TlsChannel(raw, self._channels.discard, self._buffer)
        self._channels.add(channel)
        return channel

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
        listening, self._listening = self._listening, None
        if listening is not None:
            await _stop(listening)
        await self._tasks.close()
        if listening is not None:
            listening.close()
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


def _close(connection: socket.socket, task: asyncio.Task[object]) -> None:
    """After a task: one that was cancelled before it began has not closed anything."""
    connection.close()


def _proven(nonce: bytes, acceptor: bytes, proof: bytes) -> PeerId:
    """The node that has signed a fresh nonce; raises IdentityError."""
    key, signature = proof[:PEER_ID_BYTES], proof[PEER_ID_BYTES:]
    peer = node_peer(key)
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, statement(nonce, acceptor, key))
    except (InvalidSignature, ValueError) as error:
        raise IdentityError("the dialler does not have the key that it claims") from error
    return peer


async def _gone(connection: socket.socket) -> None:
    """Wait until the other end has hung up, without reading what it says. Raises OSError when the connection breaks."""
    while True:
        await asyncio.sleep(GONE_POLL_S)
        with contextlib.suppress(BlockingIOError):
            if not connection.recv(1, socket.MSG_PEEK):
                return


async def _bound(host: str, port: int) -> socket.socket:
    """A listening socket; raises OSError, or ValueError for a name that cannot be one."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, _, _, _, address = found[0]
    listening = socket.create_server(address, family=family, backlog=MAX_PENDING_HANDSHAKES)
    listening.setblocking(False)
    return listening


async def _stop(listening: socket.socket) -> None:
    """Take no more connections. Those that were taken in this very moment reach their task, which closes them."""
    with contextlib.suppress(NotImplementedError):  # not on Windows' loop
        asyncio.get_running_loop().remove_reader(listening.fileno())
    for _ in range(ACCEPTING_ROUNDS):
        await asyncio.sleep(0)


def _reason(error: Exception) -> str:
    """Why nothing came of a connection; asyncio says the address once more."""
    number = error.errno if isinstance(error, OSError) else None
    return os.strerror(number) if number is not None and number > 0 else str(error)
