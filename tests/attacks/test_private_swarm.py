"""Attacks on a private swarm of real servers over TLS. The attacker gets nothing; an honest client gets its tokens.

*Outsiders* have a key and the servers' addresses, and whatever they found or forged. *Insiders* were invited.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import struct
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest

from shoal.client.client import AsyncClient
from shoal.client.model import RemoteModel, open_model
from shoal.engine.proof import numbers
from shoal.errors import DialError, NotAMember, ShoalError
from shoal.net.address import host_port
from shoal.net.framed import FrameChannel, refusal
from shoal.net.tls import TlsTransport
from shoal.net.transport import Channel
from shoal.server.lifecycle import Server
from shoal.swarm.directory import MAX_RECORDS, pack_records
from shoal.swarm.identity import Identity
from shoal.swarm.membership.gate import GREETING_TIMEOUT_S, MAX_UNGREETED, REFUSAL
from shoal.swarm.membership.redeemer import Issuer
from shoal.swarm.membership.statements import (
    CERTIFICATE_LIFETIME_S,
    Certificate,
    Delegation,
    Revocations,
    parse_delegation,
    parse_invite,
    sign_certificate,
    sign_delegation,
    sign_revocations,
)
from shoal.swarm.records import Acceptance, ServerRecord, sign_acceptance, sign_record
from shoal.types import PeerId, Span
from shoal.wire.frames import MAX_HEADER_BYTES, encode_frame
from shoal.wire.messages import (
    MAX_CERTIFICATE_BYTES,
    MAX_REVOCATIONS_BYTES,
    AnyMessage,
    Attach,
    Certified,
    Describe,
    Digest,
    GetStatus,
    Have,
    Leave,
    LinkGrant,
    Open,
    Ping,
    Present,
    Records,
    Redeem,
    Redirect,
    Refused,
    Renew,
    Rewind,
    encode_message,
)
from tests.integration.test_swarm import reply
from tests.private import PrivateServers, private_swarm
from tests.swarms import until

ROWS = numbers(1, 3, 48)
DIALS = 2000


class Outsider:
    """Somebody with a key of his own at the servers' doors, around every gate of this side."""

    def __init__(self, swarm: PrivateServers, key: Identity | None = None) -> None:
        self.swarm = swarm
        self.key = key or Identity.generate()
        self.transport = TlsTransport(self.key.key)

    async def dial(self, server: Server | None = None) -> Channel:
        """A proven TLS channel."""
        server = server or self.swarm.servers[0]
        return await self.transport.dial(server.identity.peer, server.addresses[0])

    async def hears(self, *said: bytes | bytearray | AnyMessage, server: Server | None = None) -> bytes:
        """All that a server answers until it closes the channel."""
        channel = await self.dial(server)
        heard = b""
        with contextlib.suppress(ShoalError):
            for one in said:
                await channel.send(one if isinstance(one, bytes | bytearray) else encode_frame(encode_message(one)))
        with contextlib.suppress(ShoalError):
            while data := await channel.receive():
                heard += data
        channel.abort()
        return heard

    async def learns_nothing(self, *said: bytes | bytearray | AnyMessage) -> None:
        """At every server: the refusal that everybody gets, or a closed channel, and not one byte more."""
        for server in self.swarm.servers:
            heard = await self.hears(*said, server=server)
            assert heard in (b"", REFUSED)


REFUSED = bytes(encode_frame(encode_message(refusal(NotAMember(REFUSAL)))))


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


@pytest.fixture
async def swarm(tiny_model: Path, tmp_path: Path) -> AsyncIterator[PrivateServers]:
    """Two servers, each with one half of the blocks."""
    async with private_swarm(tiny_model, tmp_path, Span(0, 3), Span(3, 6)) as swarm:
        yield swarm


@pytest.fixture
async def honest(swarm: PrivateServers, tiny_model: Path) -> AsyncIterator[Honest]:
    """A member at work."""
    async with swarm.client("honest") as client, await open_model(client, str(tiny_model)) as model:
        yield Honest(swarm, model)


@pytest.fixture
async def outsider(swarm: PrivateServers) -> AsyncIterator[Outsider]:
    """A stranger."""
    outsider = Outsider(swarm)
    yield outsider
    await outsider.transport.close()


def certificate(swarm: PrivateServers, peer: str, signer: Identity, **changes: object) -> bytes:
    """A certificate as somebody may sign it."""
    now = time.time()
    fields: dict[str, object] = {
        "swarm": swarm.swarm,
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
    return client._member.roll.certificate


def opening(swarm: PrivateServers, session: bytes = b"s" * 16, secret: bytes = b"k" * 16) -> Open:
    """A request that any public server would meet."""
    record = swarm.servers[0].record
    grant = LinkGrant(1, "ab" * 32, b"t" * 16)
    return Open(session, 0, secret, record.model.fingerprint, record.span, 16, grant)


async def refused(client: AsyncClient, server: Server, *said: AnyMessage) -> None:
    """An insider's messages are refused, or the channel is closed."""
    channel = FrameChannel(await client.dialler.dial(PeerId(server.record.peer), server.addresses))
    try:
        for one in said:
            await channel.send(one)
        message, _ = await channel.receive()
        while not isinstance(message, Refused):
            message, _ = await channel.receive()
    except ShoalError:
        pass
    finally:
        channel.abort()


async def test_no_certificate(swarm: PrivateServers, honest: Honest, outsider: Outsider) -> None:
    """Every message that would open something is answered in the same way, also about a session that exists."""
    spec = await honest.model.client.find_model()
    async with honest.unharmed(), honest.model.client.session(spec, max_tokens=8) as session:
        await session.step(ROWS)
        held = next(iter(swarm.servers[0].sessions))
        name = held.terms.session
        for first in (
            Digest(),
            Describe(""),
            GetStatus(),
            Leave(),
            Ping(1),
            opening(swarm),
            opening(swarm, name),
            Attach("control", name, 0, b"k" * 16),
            Attach("control", b"x" * 16, 0, b"k" * 16),
            Attach("send", name, 0, b"k" * 16, 1),
            Attach("receive", name, 0, b"k" * 16, 1),
            Present(b""),
            Certified(b""),
        ):
            await outsider.learns_nothing(first)
        await outsider.learns_nothing(b"GET / HTTP/1.1\r\n\r\n")
        await outsider.learns_nothing(os.urandom(4096))


async def test_an_expired_certificate(swarm: PrivateServers, honest: Honest, outsider: Outsider) -> None:
    """It was good until a minute ago."""
    now = time.time()
    times = {"issued_at": now - CERTIFICATE_LIFETIME_S, "expires_at": now - 60}
    async with honest.unharmed():
        old = certificate(swarm, outsider.key.peer, swarm.owner, **times)
        await outsider.learns_nothing(Present(old), GetStatus())


async def test_a_revoked_node(swarm: PrivateServers, honest: Honest) -> None:
    """Its certificate has hours to go; the list says no, at the server that learnt it by gossip too."""
    async with honest.unharmed():
        async with swarm.client("out") as client:
            proof, key = own_certificate(client), client.identity
            swarm.revoke(key.peer)
            await until(lambda: all(server._member.is_revoked(key.peer) for server in swarm.servers))  # type: ignore[union-attr]
        await Outsider(swarm, key).learns_nothing(Present(proof), GetStatus())
        await Outsider(swarm, key).learns_nothing(Present(proof, number=1 << 40), Digest())


async def test_a_certificate_of_another_swarm(
    swarm: PrivateServers, honest: Honest, outsider: Outsider, tmp_path: Path
) -> None:
    """Perfectly good, elsewhere."""
    other = PrivateServers(swarm.model, tmp_path / "other")
    async with honest.unharmed():
        good = certificate(other, outsider.key.peer, other.owner)
        await outsider.learns_nothing(Present(good), GetStatus())
        relabelled = certificate(swarm, outsider.key.peer, other.owner)
        await outsider.learns_nothing(Present(relabelled), GetStatus())


async def test_a_stolen_certificate(swarm: PrivateServers, honest: Honest, outsider: Outsider) -> None:
    """A member's or a server's own bytes, shown by another key."""
    async with honest.unharmed():
        for server in swarm.servers:
            assert server._member is not None
            await outsider.learns_nothing(Present(server._member.roll.certificate), GetStatus())
        await outsider.learns_nothing(Present(own_certificate(honest.model.client)), Digest())
        await outsider.learns_nothing(Renew(own_certificate(honest.model.client)))


async def test_a_self_made_owner(swarm: PrivateServers, honest: Honest, outsider: Outsider) -> None:
    """Signed by the attacker, in the owner's name; a delegation of his own making; a key of small order."""
    me = outsider.key
    own_delegation = parse_delegation(sign_delegation(Delegation(me.peer, me.peer, 2e9), me))[1]
    by_self = certificate(swarm, me.peer, me)
    async with honest.unharmed():
        for proof in (
            by_self,
            certificate(swarm, me.peer, me, issuer=swarm.swarm),
            certificate(swarm, me.peer, me, swarm=me.peer),
            certificate(swarm, me.peer, me, delegation=own_delegation),
            certificate(swarm, me.peer, me, issuer="01" + "00" * 31),
            b"\1" + bytes(63) + by_self[64:],
        ):
            await outsider.learns_nothing(Present(proof), GetStatus())


async def test_an_invite_used_twice(swarm: PrivateServers, honest: Honest) -> None:
    """Eight nodes bring one invite at the same time: one gets in, for good."""
    data = parse_invite(swarm.invite())[1]
    thieves = [Outsider(swarm) for _ in range(8)]
    async with honest.unharmed():
        heard = await asyncio.gather(*(thief.hears(Redeem(data)) for thief in thieves))
        losers = [thief for thief, answer in zip(thieves, heard, strict=True) if answer == REFUSED]
        assert len(losers) == 7
        await losers[0].learns_nothing(Redeem(data))


async def test_an_expired_invite(swarm: PrivateServers, honest: Honest, outsider: Outsider) -> None:
    """It was good a second ago."""
    async with honest.unharmed():
        await outsider.learns_nothing(Redeem(parse_invite(swarm.invite(expires_s=-1))[1]))


async def test_an_invite_for_another_redeemer(swarm: PrivateServers, honest: Honest, outsider: Outsider) -> None:
    """A server that may not redeem does not, and one that may redeems only what names it."""
    to_second = parse_invite(swarm.invite(redeemer=swarm.servers[1]))[1]
    async with honest.unharmed():
        await outsider.learns_nothing(Redeem(to_second))
        to_first = parse_invite(swarm.invite())[1]
        assert await outsider.hears(Redeem(to_first), server=swarm.servers[1]) == REFUSED


async def test_forged_invites(swarm: PrivateServers, honest: Honest, outsider: Outsider, tmp_path: Path) -> None:
    """Changed, of another owner, of another owner in this one's name."""
    sound = parse_invite(swarm.invite())[1]
    other = PrivateServers(swarm.model, tmp_path / "other")
    other.servers = swarm.servers
    foreign = parse_invite(other.invite())[1]
    now_ours = foreign.replace(other.swarm.encode(), swarm.swarm.encode())
    assert now_ours != foreign
    async with honest.unharmed():
        for data in (sound[:-1], sound[:70] + b"\0" + sound[71:], bytes(64) + sound[64:], foreign, now_ours, b""):
            await outsider.learns_nothing(Redeem(data))


async def push(client: AsyncClient, server: Server, *records: bytes) -> None:
    """An insider's exchange in which it hands over these records."""
    channel = FrameChannel(await client.dialler.dial(PeerId(server.record.peer), server.addresses))
    async with channel:
        await channel.send(Digest(), b"")
        await channel.expect(Records)
        await channel.send(Records(), pack_records([], list(records), 1 << 20))
        with contextlib.suppress(ShoalError):
            await channel.receive()


def altered(record: ServerRecord, **changes: object) -> ServerRecord:
    """A server's record with changes."""
    return msgspec.structs.replace(record, **changes)


async def test_forged_records(swarm: PrivateServers, honest: Honest) -> None:
    """An insider's record in a server's name, which leads to him, is dropped."""
    first, second = swarm.servers
    async with honest.unharmed(), swarm.client("insider") as insider:
        mine = altered(second.record, sequence=second.record.sequence + 100, addresses=("tls://127.0.0.1:9",))
        forged = sign_record(mine, insider.identity).data
        genuine = sign_record(second.record, second.identity).data
        await push(insider, first, forged, genuine[:64] + forged[64:], os.urandom(200), b"")
        await until(lambda: first.directory.dropped["invalid"] >= 4)
        held = first.directory.get(second.identity.peer)
        assert held is not None
        assert held.record.addresses == second.addresses


async def test_replayed_records(swarm: PrivateServers, honest: Honest) -> None:
    """A server's own older record, with an address that it has left, does not replace the newer one."""
    first, second = swarm.servers
    older = altered(second.record, sequence=second.record.sequence - 1, addresses=("tls://127.0.0.1:9",))
    async with honest.unharmed(), swarm.client("insider") as insider:
        await push(insider, first, sign_record(older, second.identity).data)
        await until(lambda: first.directory.dropped["old"] >= 1)
        held = first.directory.get(second.identity.peer)
        assert held is not None
        assert held.record.addresses == second.addresses


async def test_expired_records(swarm: PrivateServers, honest: Honest) -> None:
    """A record that was true, and one that claims to be from tomorrow."""
    first, second = swarm.servers
    now, later = time.time(), second.record.sequence + 100
    old = altered(second.record, sequence=later, issued_at=now - 400, expires_at=now - 100)
    future = altered(second.record, sequence=later, issued_at=now + 86_400, expires_at=now + 86_700)
    async with honest.unharmed(), swarm.client("insider") as insider:
        await push(insider, first, *(sign_record(record, second.identity).data for record in (old, future)))
        await until(lambda: first.directory.dropped["invalid"] >= 2)
        held = first.directory.get(second.identity.peer)
        assert held is not None
        assert held.record.sequence < later


async def test_someone_elses_session(swarm: PrivateServers, honest: Honest) -> None:
    """An insider who has learnt a session's id can neither open, take over, rewind nor close it."""
    server = swarm.servers[0]
    spec = await honest.model.client.find_model()
    async with honest.unharmed(), swarm.client("insider") as insider:
        async with honest.model.client.session(spec, max_tokens=16) as session:
            first = await session.step(ROWS)
            held = next(one for one in server.sessions if one.owner == honest.model.client.identity.peer)
            name = held.terms.session
            for attack in (
                (opening(swarm, name),),
                (Attach("control", name, 1 << 40, b"k" * 16), Rewind(1, 0, 0)),
                (Attach("send", name, 0, b"k" * 16, 1), Rewind(1, 0, 0)),
                (Attach("receive", name, 0, b"k" * 16, 1 << 20),),
                (Attach("control", name, 0, bytes(16)), Leave()),
            ):
                await refused(insider, server, *attack)
            assert held.owner == honest.model.client.identity.peer
            assert (held.receiver.epoch, held.receiver.position) == (0, len(ROWS))
            await session.rewind(0)
            assert (await session.step(ROWS)).equal(first)


async def test_the_link_token_of_another_session(swarm: PrivateServers, honest: Honest) -> None:
    """Right session, generation and token, but not the node that they were given to."""
    first, second = swarm.servers
    spec = await honest.model.client.find_model()
    async with honest.unharmed(), swarm.client("insider") as insider:
        async with honest.model.client.session(spec, max_tokens=16) as session:
            output = await session.step(ROWS)
            into = next(one for one in second.sessions if one.owner == honest.model.client.identity.peer)
            out = into.next.grant
            assert into.upstream is not None
            assert out is not None
            for role, grant in (("send", into.upstream), ("receive", out)):
                for name in (into.terms.session, b"x" * 16):
                    attach = Attach(role, name, into.incarnation, grant.token, grant.generation)  # type: ignore[arg-type]
                    await refused(insider, second, attach, Have(0, 0))
            assert first.identity.peer == into.upstream.peer
            await session.rewind(0)
            assert (await session.step(ROWS)).equal(output)


async def test_a_redirect_to_a_victim(swarm: PrivateServers, honest: Honest) -> None:
    """No record of somebody else's making, and no address without the target's consent, makes a server dial."""
    first, second = swarm.servers
    knocked: list[str] = []

    async def victim(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        knocked.append("somebody")
        writer.close()

    listening = await asyncio.start_server(victim, "127.0.0.1", 0)
    address = f"tls://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    async with honest.unharmed(), swarm.client("insider") as insider:
        me, target, hop = insider.identity, second.identity.peer, first.identity.peer
        lies = altered(second.record, addresses=(address,), sequence=1 << 47)
        own = altered(second.record, peer=me.peer, addresses=(address,))

        def accept(peer: str, signer: Identity, upstream: str = hop, generation: int = 1, until: float = 60) -> bytes:
            agreed = Acceptance(b"s" * 16, peer, upstream, generation, time.time() + until)
            return sign_acceptance(agreed, signer)

        stranger = Identity.generate()
        theirs = sign_record(altered(own, peer=stranger.peer), stranger).data
        genuine = sign_record(second.record, second.identity).data
        for peer, record, acceptance in (
            (target, sign_record(lies, me).data, accept(target, me)),
            (target, sign_record(own, me).data, accept(target, me)),
            (target, genuine, accept(target, me)),
            (stranger.peer, theirs, b""),
            (stranger.peer, theirs, accept(stranger.peer, me)),
            (stranger.peer, theirs, accept(stranger.peer, stranger, upstream=target)),
            (stranger.peer, theirs, accept(stranger.peer, stranger, generation=2)),
            (stranger.peer, theirs, accept(stranger.peer, stranger, until=-1)),
            (stranger.peer, b"", accept(stranger.peer, stranger)),
        ):
            control = FrameChannel(await insider.dialler.dial(hop, first.addresses))
            await control.send(opening(swarm, session=os.urandom(16)))
            await control.receive()
            await control.send(Redirect(LinkGrant(1, peer, b"u" * 16), record, acceptance))
            assert isinstance((await control.receive())[0], Refused)
            await control.close()
    listening.close()
    await listening.wait_closed()
    assert not knocked


def prefix(header: int, payload: int) -> bytes:
    """A frame's first 24 bytes, which promise this much."""
    return struct.pack("<4sB3sII8s", b"SHOL", 1, b"\0\0\0", header, payload, bytes(8))


async def test_oversized_everything(swarm: PrivateServers, honest: Honest, outsider: Outsider) -> None:
    """Frames, headers, certificates, lists and digests beyond their bounds, from outside and from inside."""
    proof = certificate(swarm, outsider.key.peer, swarm.owner)
    async with honest.unharmed():
        for said in (
            prefix(4, 1),
            prefix(5000, 0),
            prefix(MAX_HEADER_BYTES + 1, 0),
            prefix(4, 1 << 24),
            prefix(2**32 - 1, 2**32 - 1),
            prefix(4000, 0) + os.urandom(1 << 20),
            encode_frame(b"\x81\xa4type" + b"\x91" * 3000),
            encode_frame(encode_message(Present(proof + bytes(MAX_CERTIFICATE_BYTES)))),
            encode_frame(encode_message(Redeem(bytes(2049)))),
        ):
            await outsider.learns_nothing(said)
        greeting = encode_frame(encode_message(Present(proof, 9, news=True)))
        header = b"\x81\xa4type\xa7revoked"
        for listed in (prefix(len(header), MAX_REVOCATIONS_BYTES + 1), encode_frame(header, bytes(300_000))):
            await outsider.learns_nothing(greeting, listed)
        async with swarm.client("insider") as insider:
            server = swarm.servers[0]
            for digest in (b"x" * 41, bytes(40 * (MAX_RECORDS + 1))):
                channel = FrameChannel(await insider.dialler.dial(PeerId(server.record.peer), server.addresses))
                await channel.send(Digest(), digest)
                assert isinstance((await channel.receive())[0], Refused)
                await channel.close()
            channel = FrameChannel(await insider.dialler.dial(PeerId(server.record.peer), server.addresses))
            await channel._channel.send(prefix(4, (1 << 20) + 1))
            assert isinstance((await channel.receive())[0], Refused)
            await channel.close()


async def test_slow_strangers(swarm: PrivateServers, honest: Honest, outsider: Outsider) -> None:
    """Hundreds of channels that say one byte now and then: the oldest make room, the rest end at the deadline."""
    server = swarm.servers[0]
    begun = encode_frame(encode_message(Present(bytes(500))))
    ungreeted = server._member._gates[0]._ungreeted  # type: ignore[union-attr]
    async with honest.unharmed():
        slow = [await outsider.dial(server) for _ in range(MAX_UNGREETED + 40)]
        for at in range(2):
            for channel in slow:
                with contextlib.suppress(ShoalError):
                    await channel.send(begun[at : at + 1])
        await until(lambda: len(ungreeted) == MAX_UNGREETED)
        async with swarm.client("honest", invite="") as client:
            assert client.records()
        await until(lambda: not ungreeted, timeout_s=GREETING_TIMEOUT_S + 10)


async def test_thousands_of_dials(swarm: PrivateServers, honest: Honest, outsider: Outsider) -> None:
    """Two thousand connections in a row, silent or with a handshake, while a member generates and another one joins."""
    server = swarm.servers[0]
    host, port = host_port(server.addresses[0], "tls")

    async def knock(number: int) -> Callable[[], object]:
        if number % 20 == 0:
            with contextlib.suppress(DialError):  # pushed out by the next ones
                return (await outsider.dial(server)).abort
        raw, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, host, port)
        return raw.abort

    async with honest.unharmed():
        for batch in range(0, DIALS, 200):
            ends = await asyncio.gather(*(knock(number) for number in range(batch, batch + 200)))
            if batch == DIALS // 2:
                async with swarm.client("newcomer") as client:
                    assert client.records()
            for end in ends:
                end()


async def test_revocation_lists_rolled_back_or_forged(swarm: PrivateServers, honest: Honest) -> None:
    """An insider who brings an older list, one signed by himself or one without a signature changes nothing."""
    async with honest.unharmed(), swarm.client("insider") as insider:
        out = "ab" * 32
        swarm.revoke("cd" * 32)
        swarm.revoke(out)
        await until(lambda: all(server._member.is_revoked(PeerId(out)) for server in swarm.servers))  # type: ignore[union-attr]
        present = encode_frame(encode_message(Present(own_certificate(insider), 1 << 40, news=True)))
        everybody = frozenset({honest.model.client.identity.peer, swarm.servers[1].identity.peer})
        genuine = sign_revocations(Revocations(swarm.swarm, 1 << 40), swarm.owner)
        lists = (
            sign_revocations(Revocations(swarm.swarm, 1), swarm.owner),
            sign_revocations(Revocations(swarm.swarm, 1 << 40, everybody), insider.identity),
            sign_revocations(Revocations(insider.identity.peer, 1 << 40, everybody), insider.identity),
            bytes(64) + genuine[64:],
            genuine[:-1],
        )
        attacker = Outsider(swarm, insider.identity)
        for data in lists:
            for server in swarm.servers:
                channel = await attacker.dial(server)
                await channel.send(present + encode_frame(b"\x81\xa4type\xa7revoked", data))
                with contextlib.suppress(ShoalError):
                    await channel.receive()
                channel.abort()
        for server in swarm.servers:
            roll = server._member.roll  # type: ignore[union-attr]
            assert roll.revocations.number == 2
            assert roll.is_revoked(PeerId(out))
            assert not roll.is_revoked(honest.model.client.identity.peer)
        await attacker.transport.close()


async def test_renewal_after_revocation(swarm: PrivateServers, honest: Honest) -> None:
    """Out is out: neither the certificate nor the invite gives another one, nor does a revoked delegate's signature."""
    text = swarm.invite()
    async with honest.unharmed():
        async with swarm.client("out", invite=text) as client:
            key, proof = client.identity, own_certificate(client)
        delegate = Identity.generate()
        delegation = parse_delegation(sign_delegation(Delegation(swarm.swarm, delegate.peer, 2e9), swarm.owner))[1]
        friend = Issuer(PeerId(swarm.swarm), delegate, delegation).certify(key.peer, time.time())
        for out in (key.peer, delegate.peer):
            swarm.revoke(out)
        await until(lambda: all(server._member.roll.revocations.number == 2 for server in swarm.servers))  # type: ignore[union-attr]
        revoked = Outsider(swarm, key)
        for asked in (Renew(proof), Redeem(parse_invite(text)[1]), Renew(friend)):
            await revoked.learns_nothing(asked)
        for shown in (proof, friend):
            await revoked.learns_nothing(Present(shown), GetStatus())
        stranger = Outsider(swarm)
        by_delegate = Issuer(PeerId(swarm.swarm), delegate, delegation).certify(stranger.key.peer, time.time())
        await stranger.learns_nothing(Present(by_delegate), GetStatus())
        with pytest.raises((NotAMember, ShoalError)):
            async with swarm.client("out", invite=""):
                pass
        for one in (revoked, stranger):
            await one.transport.close()
