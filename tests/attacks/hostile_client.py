"""A client that takes what it can get: as many keys as it likes, at a loopback address of its own, and a lie for each mode.

A lie is a coroutine that does its worst with one `HostileClient` and then holds on to what it has until it is cancelled.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable

from shoal.errors import ShoalError
from shoal.protocol.frames import MAGIC, encode_frame
from shoal.protocol.messages import (
    Attach,
    Close,
    Describe,
    LinkGrant,
    Message,
    Open,
    Opened,
    Ping,
    ReceivedUpTo,
    RecordDigest,
    Redirect,
    ResumeFrom,
    Rewind,
    RowsFrame,
    encode_message,
)
from shoal.swarm.directory.records import ServerRecord
from shoal.swarm.discovery.ticket import Ticket
from shoal.swarm.identity import Identity
from shoal.transport.address import host_port
from shoal.transport.frame_channel import FrameChannel
from shoal.transport.tls_certificate import client_context
from shoal.transport.tls_transport import TlsTransport, _Plain
from shoal.types import PeerId
from tests.support.any_message import ANY

AT_ONCE = 20
"""Dials that one client makes at a time."""

CROWD = 500
"""Addresses of a flood from everywhere."""


class LoopbackTransport(TlsTransport):
    """TLS from one address of the loopback network, so that a test has as many sources as it wants."""

    def __init__(self, identity: Identity, host: str) -> None:
        super().__init__(identity.key)
        self.host = host

    async def _connect(self, host: str, port: int) -> asyncio.Transport:
        loop = asyncio.get_running_loop()
        raw, _ = await loop.create_connection(lambda: _Plain(self._dialled), host, port, local_addr=(self.host, 0))
        return raw


def promise(message: Message, payload_bytes: int) -> bytes:
    """The beginning of a frame: its prefix, which promises a payload, and its header."""
    header = encode_message(message)
    return struct.pack("<4sB3sII8s", MAGIC, 1, b"\0\0\0", len(header), payload_bytes, bytes(8)) + header


class HostileClient:
    """Dials one server from one address. Use with `async with`, which drops all that it holds."""

    def __init__(self, ticket: str, record: ServerRecord, host: str = "127.0.0.2") -> None:
        self.record = record
        self.refused = 0
        self._ticket = Ticket.parse(ticket)
        self._host = host
        self._transports: list[LoopbackTransport] = []
        self.fresh_key()

    def fresh_key(self) -> PeerId:
        """Dial with another key from now on; they are free."""
        identity = Identity.generate()
        self.me = identity.peer
        self._transport = LoopbackTransport(identity, self._host)
        self._transports.append(self._transport)
        return self.me

    async def __aenter__(self) -> HostileClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        for transport in self._transports:
            await transport.close()

    async def dial(self) -> FrameChannel:
        """A proven channel; raises DialError."""
        (address, *_) = self._ticket.addresses
        return FrameChannel(await self._transport.dial(PeerId(self._ticket.peer), address))

    async def shake_hands(self, host: str = "") -> None:
        """Prove a fresh key from some address, and hang up. Raises what `dial` raises."""
        transport = LoopbackTransport(Identity.generate(), host or self._host)
        try:
            (await transport.dial(PeerId(self._ticket.peer), self._ticket.addresses[0])).abort()
        finally:
            await transport.close()

    async def connect(self, said: bytes, host: str = "") -> socket.socket:
        """A bare TCP connection on which something was said; raises OSError."""
        (address, *_) = self._ticket.addresses
        loop, connection = asyncio.get_running_loop(), socket.socket()
        try:
            connection.setblocking(False)
            connection.bind((host or self._host, 0))
            await loop.sock_connect(connection, host_port(address, "tls"))
            await loop.sock_sendall(connection, said)
        except BaseException:
            connection.close()
            raise
        return connection

    async def many(self, count: int, work: Callable[[], Awaitable[None]]) -> None:
        """The same so many times, some at once; what the server refuses is counted."""
        left = iter(range(count))

        async def keep_on() -> None:
            for _ in left:
                try:
                    async with asyncio.timeout(10):
                        await work()
                except (ShoalError, TimeoutError):
                    self.refused += 1

        await asyncio.gather(*(keep_on() for _ in range(AT_ONCE)))

    async def promise(self, message: Message, promised_bytes: int, sent_bytes: int) -> FrameChannel:
        """A channel with a frame that never ends."""
        channel = await self.dial()
        channel._channel.write(promise(message, promised_bytes))
        for _ in range(0, sent_bytes, 65536):
            channel._channel.write(bytes(min(65536, sent_bytes)))
            await channel._channel.drain()
        return channel

    async def open(self, max_tokens: int = 16, lease_s: float = 300.0) -> HostileSession:
        """A session; raises ServerFull and the like."""
        channel = await self.dial()
        session, token = os.urandom(16), os.urandom(16)
        grant = LinkGrant(1, self.me, token)
        model = self.record.model
        await channel.send(
            Open(session, 0, os.urandom(16), model.fingerprint, self.record.span, max_tokens, grant, lease_s)
        )
        await channel.expect(Opened)
        return HostileSession(self, channel, session, token)


class HostileSession:
    """A session at one hop whose both ends are in our hands."""

    def __init__(self, client: HostileClient, control: FrameChannel, session: bytes, token: bytes) -> None:
        self.control = control
        self._client = client
        self._session = session
        self._token = token
        self._row_bytes = 4 * client.record.model.hidden_size

    async def link(self) -> FrameChannel:
        """The link into it."""
        link = await self._client.dial()
        await link.send(Attach("send", self._session, 0, self._token, 1))
        await link.expect(ReceivedUpTo)
        return link

    async def output(self) -> FrameChannel:
        """The link out of it."""
        token = os.urandom(16)
        await self.control.send(Redirect(LinkGrant(1, self._client.me, token)))
        await self.control.receive(ANY)
        link = await self._client.dial()
        await link.send(Attach("receive", self._session, 0, token, 1))
        return link

    async def outputs(self, out: FrameChannel, count: int) -> int:
        """Wait for so many rows on the link out of it; returns how many there were."""
        got = 0
        while got < count:
            message, _ = await out.receive(ANY)
            got += message.count if isinstance(message, RowsFrame) else 0
        return got

    def rows(self, count: int) -> bytes:
        """The bytes of so many rows."""
        return bytes(count * self._row_bytes)


Lie = Callable[[HostileClient], Awaitable[None]]


async def hoard_sessions(client: HostileClient) -> None:
    """Sessions of a few tokens and a long lease, whose connections are dropped."""

    async def one() -> None:
        (await client.open()).control.abort()

    await client.many(200, one)


async def hoard_with_many_keys(client: HostileClient) -> None:
    """The same with a key for each."""

    async def one() -> None:
        client.fresh_key()
        (await client.open()).control.abort()

    await client.many(100, one)


async def keep_sessions(client: HostileClient) -> None:
    """Sessions that are kept with a heartbeat and never used."""
    kept: list[HostileSession] = []

    async def one() -> None:
        kept.append(await client.open())

    await client.many(100, one)
    for number in range(1000):
        for session in kept:
            with contextlib.suppress(ShoalError):
                await session.control.send(Ping(number))
        await asyncio.sleep(1.0)


async def promise_payloads(client: HostileClient) -> None:
    """Frames of 1 MiB, with a message that has no payload, which never end."""

    async def one() -> None:
        await client.promise(Describe("f"), 1 << 20, 1_000_000)

    await client.many(1000, one)


async def promise_digests(client: HostileClient) -> None:
    """Digests as long as they may be, which never end."""

    async def one() -> None:
        await client.promise(RecordDigest(), 160_000, 131_072)

    await client.many(1000, one)


async def promise_rows(client: HostileClient) -> None:
    """Links of sessions with frames of 16 MiB, or as many rows as there may be, which never end."""

    async def one() -> None:
        client.fresh_key()
        session = await client.open(max_tokens=512)
        for count in (4096, 64):
            link = await session.link()
            link._channel.write(promise(RowsFrame(0, 0, count, 0), len(session.rows(count))))
            link._channel.write(session.rows(count)[:-1])

    await client.many(100, one)


async def say_nothing(client: HostileClient) -> None:
    """Channels on which nothing is said."""

    async def one() -> None:
        client.fresh_key()
        await client.dial()

    await client.many(1000, one)


async def ask_and_not_read(client: HostileClient) -> None:
    """Questions by the hundred whose answers are never read."""

    async def one() -> None:
        channel = await client.dial()
        channel.pause_reading()
        await channel.send(RecordDigest() if client.refused % 2 else Describe(""))

    await client.many(500, one)


TALKERS = 30
"""Sessions of one address in which idle words are said."""


class _Unread:
    """What comes is dropped."""

    def data_received(self, data: bytes) -> None:
        """ChannelSink."""

    def connection_lost(self, error: Exception | None) -> None:
        """ChannelSink."""


async def _talk(
    client: HostileClient, begin: Callable[[HostileSession], Awaitable[tuple[FrameChannel, bytes]]]
) -> None:
    """In many sessions, the same frames again and again as fast as they are taken; answers are not looked at."""

    async def one() -> None:
        while True:
            with contextlib.suppress(ShoalError, TimeoutError):
                client.fresh_key()
                frames, said = await begin(await client.open(max_tokens=64))
                channel = frames.release()
                channel.attach(_Unread())
                while True:
                    channel.write(said)
                    await channel.drain()
                    await asyncio.sleep(0.002)  # the honest client shares this loop
            await asyncio.sleep(0.1)

    await asyncio.gather(*(one() for _ in range(TALKERS)))


def _frames(*messages: tuple[Message, bytes]) -> bytes:
    return b"".join(bytes(encode_frame(encode_message(message), payload)) for message, payload in messages)


async def give_orders_without_end(client: HostileClient) -> None:
    """Rewinds of nothing, by the thousand."""

    async def begin(session: HostileSession) -> tuple[FrameChannel, bytes]:
        return session.control, _frames((Rewind(1, 0, 0), b"")) * 200

    await _talk(client, begin)


async def ping_without_end(client: HostileClient) -> None:
    """Heartbeats by the thousand."""

    async def begin(session: HostileSession) -> tuple[FrameChannel, bytes]:
        return session.control, _frames((Ping(1), b"")) * 200

    await _talk(client, begin)


async def ask_for_rows_without_end(client: HostileClient) -> None:
    """The same rows are asked for again and again."""

    async def begin(session: HostileSession) -> tuple[FrameChannel, bytes]:
        link, out = await session.link(), await session.output()
        await link.send(RowsFrame(0, 0, 64, 0), session.rows(64))
        return out, _frames((ReceivedUpTo(0, 0), b"")) * 200

    await _talk(client, begin)


async def leave_gaps_without_end(client: HostileClient) -> None:
    """A sender that goes on from the beginning, and sends what does not follow."""

    async def begin(session: HostileSession) -> tuple[FrameChannel, bytes]:
        gap = (ResumeFrom(0, 0), b""), (RowsFrame(0, 5, 1, 0), session.rows(1))
        return await session.link(), _frames(*gap) * 100

    await _talk(client, begin)


async def send_old_rows_without_end(client: HostileClient) -> None:
    """Rows of an epoch that is over."""

    async def begin(session: HostileSession) -> tuple[FrameChannel, bytes]:
        link = await session.link()
        await session.control.send(Rewind(5, 0, 0))
        return link, _frames((RowsFrame(0, 0, 1, 0), session.rows(1))) * 200

    await _talk(client, begin)


IDLE_TALK: dict[str, Lie] = {
    lie.__name__: lie
    for lie in (
        give_orders_without_end,
        ping_without_end,
        ask_for_rows_without_end,
        leave_gaps_without_end,
        send_old_rows_without_end,
    )
}


async def _flood(one: Callable[[int], Awaitable[None]]) -> None:
    """The same without end, some at once; its number tells each apart."""
    numbers = itertools.count()

    async def keep_on() -> None:
        while True:
            with contextlib.suppress(ShoalError, OSError, TimeoutError):
                async with asyncio.timeout(10):
                    await one(next(numbers))
            await asyncio.sleep(0)

    await asyncio.gather(*(keep_on() for _ in range(AT_ONCE)))


def crowd_host(number: int, crowd: int = CROWD) -> str:
    """One of many addresses of the loopback network, that of honest clients left out."""
    return f"127.0.{2 + number % crowd // 250}.{1 + number % crowd % 250}"


async def shake_hands(client: HostileClient) -> None:
    """Connections with a key each and nothing to say, without end."""

    async def one(number: int) -> None:
        await client.shake_hands()

    await _flood(one)


async def shake_hands_from_everywhere(client: HostileClient) -> None:
    """The same from many addresses."""

    async def one(number: int) -> None:
        await client.shake_hands(crowd_host(number))

    await _flood(one)


def client_hello() -> bytes:
    """What a client says first."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        client_context().wrap_bio(incoming, outgoing).do_handshake()
    return outgoing.read()


async def say_hello(client: HostileClient) -> None:
    """The first message of a handshake from many addresses, without end: it costs nothing to say."""
    hello = client_hello()

    async def one(number: int) -> None:
        connection = await client.connect(hello, crowd_host(number))
        await asyncio.sleep(0.05)
        connection.close()

    await _flood(one)


async def talk_junk(client: HostileClient) -> None:
    """Connections that speak no TLS, from many addresses, without end."""

    async def one(number: int) -> None:
        (await client.connect(os.urandom(512), crowd_host(number))).close()

    await _flood(one)


async def come_and_go(client: HostileClient) -> None:
    """Connections on which nothing is said, which end at once, without end."""

    async def one(number: int) -> None:
        (await client.connect(b"", crowd_host(number))).close()

    await _flood(one)


async def fill_journals(client: HostileClient) -> None:
    """Sessions as long as they may be, whose outputs nobody reads."""
    kept: list[object] = []

    async def one() -> None:
        client.fresh_key()
        session = await client.open(max_tokens=512)
        link, out = await session.link(), await session.output()
        await out.send(ReceivedUpTo(0, 0))
        out.pause_reading()
        kept.append((session, link, out))
        for position in range(0, 512, 64):
            await link.send(RowsFrame(0, position, 64, 0), session.rows(64))

    await client.many(100, one)


LIES: dict[str, Lie] = {
    lie.__name__: lie
    for lie in (
        hoard_sessions,
        hoard_with_many_keys,
        keep_sessions,
        promise_payloads,
        promise_digests,
        promise_rows,
        say_nothing,
        ask_and_not_read,
        shake_hands,
        shake_hands_from_everywhere,
        say_hello,
        talk_junk,
        come_and_go,
        fill_journals,
    )
} | IDLE_TALK


STORMS = ("shake_hands", "shake_hands_from_everywhere", "say_hello", "talk_junk", "come_and_go")
"""Those without end: told in a process of their own, or the honest client beside them has no time either."""


@contextlib.asynccontextmanager
async def lying(client: HostileClient, lie: Lie, begun_s: float = 2.0) -> AsyncIterator[None]:
    """While a lie is told: the body begins when it is over, or has gone on for a while."""
    telling = asyncio.ensure_future(lie(client))
    try:
        await asyncio.wait([telling], timeout=begun_s)
        yield
    finally:
        telling.cancel()
        await asyncio.gather(telling, return_exceptions=True)


async def ask_greedily(client: HostileClient, keys: int = 4, rows: int = 8) -> None:
    """Asks for sessions without pause, keeps each for its lease, and sends some rows into it."""

    async def one() -> None:
        client.fresh_key()
        while True:
            with contextlib.suppress(ShoalError, TimeoutError):
                session = await client.open(max_tokens=64)
                link, out = await session.link(), await session.output()
                await out.send(ReceivedUpTo(0, 0))
                for position in range(0, 64, rows):
                    await link.send(RowsFrame(0, position, rows, 0), session.rows(rows))
                    await out.receive(ANY)
                session.control.abort()
                link.abort()
                out.abort()
            await asyncio.sleep(0.2)

    await asyncio.gather(*(one() for _ in range(keys)))


async def compute_greedily(client: HostileClient, keys: int, rows: int, had: list[int]) -> None:
    """Asks for sessions with as many keys, and has each compute without pause, so many rows at once; `had` counts what came."""

    async def one() -> None:
        client.fresh_key()
        while True:
            try:
                session = await client.open(max_tokens=256)
                async with session.control, await session.link() as link, await session.output() as out:
                    await out.send(ReceivedUpTo(0, 0))
                    for position in range(0, 256, rows):
                        await link.send(RowsFrame(0, position, rows, 0), session.rows(rows))
                        had[0] += await session.outputs(out, rows)
                    await session.control.send(Close())
            except (ShoalError, TimeoutError):
                await asyncio.sleep(2.0)

    await asyncio.gather(*(one() for _ in range(keys)))
