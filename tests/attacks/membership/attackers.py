"""Who attacks a private swarm, what they can make up, and the honest member who must not notice.

*Outsiders* have a key and the servers' addresses, and whatever they found or forged. *Insiders* were invited.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import msgspec

from shoal.client.client import AsyncClient
from shoal.client.remote_model import RemoteModel
from shoal.engine.proof import numbers
from shoal.errors import NetworkError, NotAMember, ShoalError
from shoal.protocol.frames import encode_frame
from shoal.protocol.messages import LinkGrant, Message, Open, RecordBatch, RecordDigest, Refusal, encode_message
from shoal.protocol.refusals import refusal
from shoal.server.server import Server
from shoal.server.sessions.hop_session import HopSession
from shoal.swarm.directory.directory import pack_records
from shoal.swarm.directory.records import ServerRecord
from shoal.swarm.identity import Identity
from shoal.swarm.membership.credentials import CERTIFICATE_LIFETIME_S, Certificate, sign_certificate
from shoal.swarm.membership.member_transport import REFUSAL
from shoal.transport.byte_stream import ByteStream
from shoal.transport.frame_channel import FrameChannel
from shoal.transport.tls_transport import TlsTransport
from shoal.types import Span
from tests.integration.test_swarm import reply
from tests.private import PrivateServers
from tests.support.any_message import ANY

ROWS = numbers(1, 3, 48)

OWN_TOKENS = 37
"""A grant by which a test finds its own session among others."""

REFUSED = bytes(encode_frame(encode_message(refusal(NotAMember(REFUSAL)))))


class Outsider:
    """Somebody with a key of his own at the servers' doors, around every gate of this side."""

    def __init__(self, swarm: PrivateServers, key: Identity | None = None) -> None:
        self.swarm = swarm
        self.key = key or Identity.generate()
        self.transport = TlsTransport(self.key.key)

    async def dial(self, server: Server | None = None) -> ByteStream:
        """A proven TLS channel."""
        server = server or self.swarm.servers[0]
        return ByteStream(await self.transport.dial(server.identity.peer, server.addresses[0]))

    async def hears(self, *said: bytes | bytearray | Message, server: Server | None = None) -> bytes:
        """All that a server answers until it closes the channel."""
        channel = await self.dial(server)
        heard = b""
        with contextlib.suppress(ShoalError):
            for one in said:
                await channel.send(
                    one if isinstance(one, bytes | bytearray) else encode_frame(msgspec.msgpack.encode(one))
                )
        with contextlib.suppress(ShoalError):
            while data := await channel.receive():
                heard += data
        channel.abort()
        return heard

    async def learns_nothing(self, *said: bytes | bytearray | Message) -> None:
        """At every server: the refusal that everybody gets, or a closed channel, and not one byte more."""
        servers = self.swarm.servers
        for heard in await asyncio.gather(*(self.hears(*said, server=server) for server in servers)):
            assert heard in (b"", REFUSED)


class Honest:
    """A member who generates the same reply before, during and after an attack."""

    def __init__(self, swarm: PrivateServers, model: RemoteModel) -> None:
        self.swarm = swarm
        self.model = model

    async def tokens(self) -> list[int]:
        """Greedy tokens of one prompt."""
        return (await reply(self.model, "the sea, the sea", max_tokens=16)).token_ids

    @contextlib.asynccontextmanager
    async def unharmed(self) -> AsyncIterator[None]:
        """Around an attack."""
        expected = await self.tokens()
        during = asyncio.ensure_future(self.tokens())
        try:
            yield
        finally:
            assert await during == expected
        assert await self.tokens() == expected
        async with self.swarm.client("honest", invite="") as client:  # and a connection made after it
            assert client.records()


def certificate(private: PrivateServers, peer: str, signer: Identity, **changes: object) -> bytes:
    """A certificate as somebody may sign it."""
    now = time.time()
    fields: dict[str, object] = {
        "swarm": private.swarm,
        "peer": peer,
        "issuer": signer.peer,
        "issued_at": now,
        "expires_at": now + CERTIFICATE_LIFETIME_S,
        **changes,
    }
    return sign_certificate(Certificate(**fields), signer)  # type: ignore[arg-type]  # a test's fields are what it says


def own_certificate(client: AsyncClient) -> bytes:
    """An insider's own, valid certificate."""
    assert client._member is not None
    return client._member.proof


def opening(
    swarm: PrivateServers, session: bytes = b"s" * 16, secret: bytes = b"k" * 16, span: Span | None = None
) -> Open:
    """A request that any public server would meet."""
    record = swarm.servers[0].record
    grant = LinkGrant(1, "ab" * 32, b"t" * 16)
    return Open(session, 0, secret, record.model.fingerprint, span or record.span, 16, grant)


async def dial(insider: AsyncClient | Server, server: Server) -> FrameChannel:
    """An insider's channel, past the gate."""
    dialler = insider.dialler if isinstance(insider, AsyncClient) else insider.network.dialler
    return FrameChannel(await dialler.dial(server.identity.peer, server.addresses))


async def refused(insider: AsyncClient | Server, server: Server, *said: Message, payload: bytes = b"") -> str:
    """An insider's messages are answered with a refusal and nothing else; returns its text."""
    channel = await dial(insider, server)
    with contextlib.suppress(NetworkError):  # it may close the channel before it has heard everything
        for one in said:
            await channel.send(one, payload)
    message, _ = await channel.receive(ANY)
    channel.abort()
    assert isinstance(message, Refusal), message
    return message.message


def own_session(server: Server) -> HopSession:
    """The session with a grant of OWN_TOKENS."""
    return next(session for session in server.sessions if session.terms.max_tokens == OWN_TOKENS)


async def push(client: AsyncClient, server: Server, *entries: tuple[bytes, bytes]) -> None:
    """An insider's exchange in which it hands over these records, each with a certificate."""
    async with await dial(client, server) as channel:
        await channel.send(RecordDigest(), b"")
        await channel.expect(RecordBatch)
        await channel.send(RecordBatch(), pack_records([], [part for entry in entries for part in entry], 1 << 20))
        with contextlib.suppress(ShoalError):
            await channel.receive(ANY)


def own_proof(server: Server) -> bytes:
    """A server's own, valid certificate."""
    assert server.network.member is not None
    return server.network.member.proof


def altered(record: ServerRecord, **changes: object) -> ServerRecord:
    """A server's record with changes."""
    return msgspec.structs.replace(record, **changes)
