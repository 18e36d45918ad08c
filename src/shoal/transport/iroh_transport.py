"""Channels over iroh: one QUIC connection to a peer, one stream in it per channel (docs/wire.md, "Transports").

Both ends of a connection are known by their node keys. Only direct addresses are used, and relays when asked for, whose
addresses are written iroh://https://HOST/. No discovery, no DNS but for a relay's name.
"""

from __future__ import annotations

import asyncio
import ipaddress
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any
from weakref import WeakValueDictionary

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from shoal.errors import DialError, IdentityError, ProtocolError, ShoalError, UsageError
from shoal.transport.address import host_port, join_host_port, local_hosts, source_network
from shoal.transport.channel import HANDSHAKE_TIMEOUT_S, ChannelHandler
from shoal.transport.handshake_turns import HandshakeTurns
from shoal.transport.inbound_tasks import InboundTasks, serve
from shoal.transport.iroh_channel import IrohChannel
from shoal.transport.iroh_guard import ConnectionGuard
from shoal.transport.iroh_native import contained, failure_text, load_iroh
from shoal.transport.node_key import node_peer
from shoal.types import PeerId

ALPN = b"shoal/1"
HELLO = b"\0"
"""The first byte in each direction of a stream. The acceptor learns of a stream only when something is written to it,
and the dialler knows only by the answer that somebody still lives at the other end of a connection it already had."""

MAX_STREAMS = 1024
"""Channels that one connection may carry."""

PUBLIC_RELAY = "public"
"""Stands for the relays that iroh's makers run, where a relay's URL is asked for. Not yet tried."""

RELAY_TIMEOUT_S = 5.0
"""How long `listen` waits until a relay knows this node."""

HANDSHAKE_S = 0.002
"""What a handshake costs, which iroh computes in threads of its own."""

IDLE_S = 10.0
"""How long a connection that came in may carry no channel."""

REUSE_TIMEOUT_S = 0.5
"""How long a connection that exists may take to answer before a dial makes a new one: its peer may have restarted."""


class ConnectionUse:
    """How many streams of a connection are served; with none of them its time runs out. `with use:` stands around each."""

    def __init__(self, limit: asyncio.Timeout) -> None:
        self._limit = limit
        self._streams = 0

    def __enter__(self) -> None:
        self._streams += 1
        self._until(None)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._streams -= 1
        if not self._streams:
            self._until(asyncio.get_running_loop().time() + IDLE_S)

    def _until(self, when: float | None) -> None:
        with suppress(RuntimeError):  # the connection has ended
            self._limit.reschedule(when)


class IrohTransport:
    """iroh for one node. `bind` is IP:PORT, where the UDP socket lives; port 0 takes a free one.

    A node that dials beyond its own machine has to bind to an address that leads there, such as 0.0.0.0. Creating one
    loads the iroh package; raises UsageError when that fails. `relay` is a relay's URL, PUBLIC_RELAY, or None for none. What
    comes in waits for its turn in `turns`, which a node's transports share.
    """

    name = "iroh"

    def __init__(
        self,
        key: Ed25519PrivateKey,
        bind: str = "127.0.0.1:0",
        advertise: tuple[str, ...] = (),
        relay: str | None = None,
        turns: HandshakeTurns | None = None,
    ) -> None:
        self._iroh = load_iroh()
        self._turns = turns or HandshakeTurns()
        self._relay = relay
        self._key = key
        self._bind = host_port(bind)
        self._advertise = advertise
        self._endpoint: Any = None
        self._binding = asyncio.Lock()
        self._connections: WeakValueDictionary[PeerId, Any] = WeakValueDictionary()
        self._dialling: WeakValueDictionary[tuple[PeerId, str], asyncio.Lock] = WeakValueDictionary()
        self._guards: dict[int, ConnectionGuard] = {}
        self._channels: set[IrohChannel] = set()
        self._tasks = InboundTasks()
        self._closed = False
        self.addresses: tuple[str, ...] = ()

    async def listen(self, handler: ChannelHandler) -> None:
        """Transport: bind and accept."""
        endpoint = await self._bound()
        endpoint.set_alpns([ALPN])
        self._tasks.start(contained(self._accept, endpoint, handler))
        host, port = self._bind[0], self._bound_port(endpoint)
        direct = self._advertise or tuple(f"iroh://{name}:{port}" for name in local_hosts(host))
        self.addresses = (*direct, *await contained(self._relay_address, endpoint))

    async def _relay_address(self, endpoint: Any) -> tuple[str, ...]:
        """The relay under which this node can be reached; none without one, or when it does not answer in time."""
        if self._relay is None:
            return ()
        with suppress(TimeoutError):
            async with asyncio.timeout(RELAY_TIMEOUT_S):
                await endpoint.online()
        url = endpoint.addr().relay_url()
        return (f"iroh://{url}",) if url else ()

    def _bound_port(self, endpoint: Any) -> int:
        bound = dict(host_port(address) for address in endpoint.bound_sockets())
        return {ipaddress.ip_address(host): port for host, port in bound.items()}[_ip(self._bind[0])]

    async def _bound(self) -> Any:
        """The endpoint, bound on first use. Raises UsageError when that fails or after `close`."""
        async with self._binding:
            if self._closed:
                raise UsageError("the iroh transport is closed")
            if self._endpoint is None:
                self._endpoint = await contained(self._bind_any)
            return self._endpoint

    async def _bind_any(self) -> Any:
        host, port = self._bind
        address = _ip(host)
        wanted = [join_host_port(host, port)]
        if not address.is_unspecified:
            # iroh adds a wildcard socket of each family that it is not given; loopback keeps it from doing so.
            with suppress(self._iroh.IrohError):  # a machine without the other family
                return await self._bind_all([*wanted, "[::1]:0" if address.version == 4 else "127.0.0.1:0"])
        try:
            return await self._bind_all(wanted)
        except self._iroh.IrohError as error:
            raise UsageError(f"cannot listen on {wanted[0]}: {failure_text(error)}") from error

    async def _bind_all(self, addresses: list[str]) -> Any:
        builder = self._iroh.EndpointBuilder()
        builder.apply_minimal()  # cryptography only: nothing is looked up or announced anywhere
        builder.relay_mode(relay_mode(self._iroh.RelayMode, self._relay))
        builder.secret_key(self._key.private_bytes_raw())
        for address in addresses:
            builder.bind_addr(address)
        return await builder.bind()

    async def _accept(self, endpoint: Any, handler: ChannelHandler) -> None:
        while (incoming := await endpoint.accept_next()) is not None:
            if self._tasks.full:
                await incoming.refuse()
            elif self._tasks.crowded and not await contained(self._answers, incoming):
                pass
            else:
                host = await _host(incoming)
                self._tasks.start_unproven(contained(self._welcome, incoming, host, handler), source_network(host))

    async def _answers(self, incoming: Any) -> bool:
        """Whether the address that a connection seems to come from has answered. If not, it is asked to (RFC 9000, 8.1.2).

        Anybody can write any address on a packet, and turns are taken by address.
        """
        with suppress(self._iroh.IrohError):
            if await incoming.remote_addr_validated():
                return True
            await incoming.retry()
        return False

    async def _welcome(self, incoming: Any, host: str, handler: ChannelHandler) -> None:
        """Do the handshake of one connection when it is its turn, then serve its streams while it lasts.

        It counts as one that proves nothing until it carries a channel, and ends when it has carried none for IDLE_S: honest
        diallers hold none without.
        """
        try:
            async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
                turn = await self._turns.turn(source_network(host))
                turn.spent(HANDSHAKE_S)
                connection = await (await incoming.accept()).connect()
        except (self._iroh.IrohError, TimeoutError):
            return
        # The end of the connection, or a key that proves nothing, or no channel for too long.
        with suppress(self._iroh.IrohError, IdentityError, TimeoutError):
            peer = node_peer(connection.remote_id().to_bytes())
            connection.set_max_concurrent_bi_streams(MAX_STREAMS)
            async with ConnectionGuard(connection, dialled=False), asyncio.timeout(IDLE_S) as limit:
                use = ConnectionUse(limit)
                while True:
                    stream = await connection.accept_bi()
                    if not self._tasks.full:
                        self._tasks.proven()
                        work = self._serve(use, peer, host, connection, stream, handler)
                        self._tasks.start_unproven(work, source_network(host))
                    del stream  # a stream ends when nobody holds it

    async def _serve(
        self, use: ConnectionUse, peer: PeerId, host: str, connection: Any, stream: Any, handler: ChannelHandler
    ) -> None:
        with use:
            try:
                channel = await contained(self._admit, peer, host, connection, stream)
            finally:
                del connection, stream  # a handler's error keeps this frame
            self._tasks.proven()
            if channel is not None:
                await serve(channel, handler)

    async def _admit(self, peer: PeerId, host: str, connection: Any, stream: Any) -> IrohChannel | None:
        try:
            async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
                await _greet(stream)
        except (self._iroh.IrohError, TimeoutError, ProtocolError):
            return None
        return self._channel(IrohChannel(peer, connection, stream, self._ended, host))

    def _channel(self, channel: IrohChannel) -> IrohChannel:
        self._channels.add(channel)
        return channel

    async def _ended(self, channel: IrohChannel) -> None:
        self._channels.discard(channel)

    async def dial(self, peer: PeerId, address: str) -> IrohChannel:
        """Transport: open a stream, in the connection that there is or in a new one."""
        if address.startswith((f"{self.name}://https://", f"{self.name}://http://")):
            if self._relay is None:  # a record must not make this node contact whatever host it names
                raise DialError(f"{address} is a relay's, and this node uses none")
            return await contained(self._dial, peer, address.removeprefix(f"{self.name}://"))
        host, port = host_port(address, scheme=self.name)
        return await contained(self._dial, peer, join_host_port(str(_ip(host)), port))

    async def _dial(self, peer: PeerId, target: str) -> IrohChannel:
        endpoint = await self._bound()
        silent = self._connected(peer)
        if silent is not None:
            with suppress(self._iroh.IrohError, TimeoutError, ProtocolError):
                async with asyncio.timeout(REUSE_TIMEOUT_S):
                    return await self._open(peer, silent)
        try:
            async with self._dialling.setdefault((peer, target), asyncio.Lock()):
                connection = self._connected(peer)
                if connection is None or connection is silent:
                    connection = await self._connect(endpoint, peer, target)
            return await self._open(peer, connection)
        except (self._iroh.IrohError, ProtocolError, TimeoutError) as error:
            raise _dial_error(peer, target, error) from error

    def _connected(self, peer: PeerId) -> Any:
        connection = self._connections.get(peer)
        return connection if connection is not None and connection.close_reason() is None else None

    async def _connect(self, endpoint: Any, peer: PeerId, target: str) -> Any:
        node = self._iroh.EndpointId.from_bytes(bytes.fromhex(peer))
        way = (target, []) if "://" in target else (None, [target])
        async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
            connection = await endpoint.connect(self._iroh.EndpointAddr(node, *way), ALPN)
        self._connections[peer] = connection
        return connection

    async def _open(self, peer: PeerId, connection: Any) -> IrohChannel:
        number = connection.stable_id()
        guard = self._guards.get(number) or ConnectionGuard(connection, dialled=True)
        self._guards[number] = guard
        guard.enter()
        try:
            stream = await connection.open_bi()
            await _greet(stream)
        except BaseException:
            await self._leave(number)
            raise
        return self._channel(IrohChannel(peer, connection, stream, partial(self._left, number)))

    async def _left(self, number: int, channel: IrohChannel) -> None:
        await self._leave(number)
        await self._ended(channel)

    async def _leave(self, number: int) -> None:
        """One less uses the connection of this number, which this side has dialled."""
        if await self._guards[number].leave():
            del self._guards[number]

    async def close(self) -> None:
        """Transport: stop accepting, end every channel."""
        self._closed = True
        await self._tasks.close()
        channels = list(self._channels)
        for channel in channels:
            channel.abort()
        for channel in channels:
            await channel.wait_ended()
        await contained(self._unbind)

    async def _unbind(self) -> None:
        async with self._binding:
            endpoint, self._endpoint = self._endpoint, None
        if endpoint is not None:
            await endpoint.close()


def relay_mode(modes: Any, relay: str | None) -> Any:
    """iroh's relay mode for a relay's URL, PUBLIC_RELAY or None, out of its class RelayMode."""
    if relay is None:
        return modes.disabled()
    return modes.default_mode() if relay == PUBLIC_RELAY else modes.custom_from_urls([relay])


async def _host(incoming: Any) -> str:
    """The IP address that a connection comes from; empty where it comes over a relay, or is gone."""
    try:
        address = await contained(incoming.remote_addr)
    except load_iroh().IrohError:
        return ""
    return host_port(address.addr)[0] if address.is_IP() else ""


async def _greet(stream: Any) -> None:
    """Say hello and hear it; raises ProtocolError for anything else."""
    await stream.send().write_all(HELLO)
    answer = await stream.recv().read_exact(len(HELLO))
    if answer != HELLO:
        raise ProtocolError(f"a stream began with {answer!r}")


def _dial_error(peer: PeerId, target: str, error: Exception) -> ShoalError:
    text = "no handshake in time" if isinstance(error, TimeoutError) else failure_text(error)
    if "invalid peer certificate" in text:
        return IdentityError(f"another node answered at iroh://{target} where {peer[:8]} was expected")
    return DialError(f"iroh://{target} does not answer: {text}")


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    try:
        return ipaddress.ip_address(host)
    except ValueError as error:
        raise UsageError(f"iroh addresses are numeric, not {host!r}") from error
