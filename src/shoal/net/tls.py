"""Channels over TCP with TLS 1.3, one connection each (docs/wire.md, "Transports")."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from typing import cast

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from shoal.errors import ChannelClosed, DialError, IdentityError, UsageError
from shoal.net.address import host_port, local_hosts
from shoal.net.certificate import certified_peer, client_context, server_context
from shoal.net.inbox import Inbox
from shoal.net.transport import (
    HANDSHAKE_TIMEOUT_S,
    MAX_PENDING_HANDSHAKES,
    SEND_BUFFER_BYTES,
    ChannelHandler,
)
from shoal.types import PEER_ID_BYTES, PeerId, peer_id

NONCE_BYTES = 32
SIGNATURE_BYTES = 64
CLOSE_TIMEOUT_S = 2.0

_LABEL = b"shoal tls client 1\0"


class TlsChannel(asyncio.Protocol):
    """One TLS connection."""

    transport = "tls"

    def __init__(self) -> None:
        self.peer = PeerId("")
        self.inbox = Inbox(self._pause, self._resume)
        self._socket: asyncio.Transport | None = None
        self._lost = asyncio.get_running_loop().create_future()
        self._writable = asyncio.Event()
        self._writable.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._socket = cast(asyncio.Transport, transport)
        self._socket.set_write_buffer_limits(high=SEND_BUFFER_BYTES)
        raw: socket.socket | None = transport.get_extra_info("socket")
        if raw is not None:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        self.inbox.put(data)

    def eof_received(self) -> bool:
        self.inbox.end()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.inbox.end(ChannelClosed(f"the connection broke: {exc}") if exc is not None else None)
        self._writable.set()
        if not self._lost.done():
            self._lost.set_result(None)

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def _pause(self) -> None:
        if self._socket is not None and not self._socket.is_closing():
            self._socket.pause_reading()

    def _resume(self) -> None:
        if self._socket is not None and not self._socket.is_closing():
            self._socket.resume_reading()

    async def send(self, data: bytes | bytearray) -> None:
        """Channel: write once, then wait while the buffer is full."""
        if self._socket is None or self._socket.is_closing():
            raise ChannelClosed("the channel is closed")
        self._socket.write(data)
        if not self._writable.is_set():
            await self._writable.wait()
            if self._lost.done():
                raise ChannelClosed("the channel closed while it was sending")

    async def receive(self) -> bytes:
        """Channel: what has arrived."""
        return await self.inbox.get()

    async def close(self) -> None:
        """Channel: flush and end."""
        if self._socket is not None:
            self._socket.close()
            try:
                await asyncio.wait_for(asyncio.shield(self._lost), CLOSE_TIMEOUT_S)
            except TimeoutError:
                self._socket.abort()

    def abort(self) -> None:
        """Channel: drop at once."""
        self.inbox.end(ChannelClosed("the channel was dropped"))
        if self._socket is not None:
            self._socket.abort()

    def certificate(self) -> bytes | None:
        """What the other side showed, as DER."""
        tls: ssl.SSLObject | None = self._socket.get_extra_info("ssl_object") if self._socket is not None else None
        return tls.getpeercert(binary_form=True) if tls is not None else None


class _Accepted(asyncio.Protocol):
    """A TCP connection before TLS: nothing is read until its task has a place."""

    def __init__(self, owner: TlsTransport) -> None:
        self._owner = owner

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        raw = cast(asyncio.Transport, transport)
        raw.pause_reading()
        self._owner.accepted(raw, self)


class TlsTransport:
    """TCP with TLS 1.3 for one node. `listen` is HOST:PORT; port 0 takes a free one."""

    name = "tls"

    def __init__(self, key: Ed25519PrivateKey, listen: str = "127.0.0.1:0", advertise: tuple[str, ...] = ()) -> None:
        self._key = key
        self._me = key.public_key().public_bytes_raw()
        self._listen = host_port(listen)
        self._advertise = advertise
        self._client_tls = client_context()
        self._server_tls: ssl.SSLContext | None = None
        self._server: asyncio.Server | None = None
        self._handler: ChannelHandler | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._pending = 0
        self.addresses: tuple[str, ...] = ()

    async def listen(self, handler: ChannelHandler) -> None:
        """Transport: bind and accept."""
        host, port = self._listen
        self._handler = handler
        self._server_tls = server_context(self._key)
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(lambda: _Accepted(self), host, port, backlog=256)
        except OSError as error:
            raise UsageError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
        bound = self._server.sockets[0].getsockname()[1]
        self.addresses = self._advertise or tuple(f"tls://{name}:{bound}" for name in local_hosts(host))

    def accepted(self, raw: asyncio.Transport, before: asyncio.Protocol) -> None:
        """A connection came in: prove it in a task of its own, if there is room for one more."""
        if self._pending >= MAX_PENDING_HANDSHAKES or self._handler is None:
            raw.abort()
            return
        self._pending += 1
        task = asyncio.get_running_loop().create_task(self._serve(raw, before))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, raw: asyncio.Transport, before: asyncio.Protocol) -> None:
        channel = None
        try:
            async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
                channel = await self._secure(raw, before)
                channel.peer = await self._prove(channel)
        except (OSError, EOFError, ChannelClosed, IdentityError, TimeoutError):
            raw.abort()  # strangers get no explanation
            return
        finally:
            self._pending -= 1
        handler = self._handler
        try:
            if handler is not None:
                await handler(channel)
        finally:
            channel.abort()

    async def _secure(self, raw: asyncio.Transport, before: asyncio.Protocol) -> TlsChannel:
        loop, channel = asyncio.get_running_loop(), TlsChannel()
        secured = await loop.start_tls(
            raw, channel, cast(ssl.SSLContext, self._server_tls), server_side=True,
            ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S,
        )  # fmt: skip
        if secured is None:
            raise ChannelClosed("the connection ended during the handshake")
        channel.connection_made(secured)
        return channel

    async def _prove(self, channel: TlsChannel) -> PeerId:
        """Ask the dialler for a signature over a fresh nonce; raises IdentityError."""
        nonce = os.urandom(NONCE_BYTES)
        await channel.send(nonce)
        proof = await channel.inbox.get_exactly(PEER_ID_BYTES + SIGNATURE_BYTES)
        key, signature = proof[:PEER_ID_BYTES], proof[PEER_ID_BYTES:]
        try:
            Ed25519PublicKey.from_public_bytes(key).verify(signature, _LABEL + nonce + self._me + key)
        except (InvalidSignature, ValueError) as error:
            raise IdentityError("the dialler does not have the key that it claims") from error
        return peer_id(key)

    async def dial(self, peer: PeerId, address: str) -> TlsChannel:
        """Transport: connect, check the server's key, prove this side's."""
        host, port = host_port(address, scheme=self.name)
        loop = asyncio.get_running_loop()
        try:
            _, channel = await loop.create_connection(
                TlsChannel,
                host,
                port,
                ssl=self._client_tls,
                server_hostname="shoal",
                ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S,
            )
        except OSError as error:
            raise DialError(f"{address} does not answer: {error.strerror or error}") from error
        try:
            await self._authenticate(channel, peer)
        except BaseException:
            channel.abort()
            raise
        return channel

    async def _authenticate(self, channel: TlsChannel, peer: PeerId) -> None:
        found = certified_peer(channel.certificate())
        if found != peer:
            raise IdentityError(f"node {found[:8]} answered where {peer[:8]} was expected")
        try:
            nonce = await channel.inbox.get_exactly(NONCE_BYTES)
        except (EOFError, ChannelClosed) as error:
            raise DialError(f"{peer[:8]} ended the connection during the handshake") from error
        statement = _LABEL + nonce + bytes.fromhex(peer) + self._me
        await channel.send(self._me + self._key.sign(statement))
        channel.peer = peer

    async def close(self) -> None:
        """Transport: stop accepting, end every accepted channel."""
        server, self._server, self._handler = self._server, None, None
        if server is not None:
            server.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
