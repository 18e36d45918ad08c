"""Certificates that are missing, old, forged or somebody else's, and lists that lie: nothing is answered."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

import pytest

from shoal.clock import SYSTEM_CLOCK
from shoal.errors import ShoalError
from shoal.protocol.frames import encode_frame
from shoal.protocol.messages import (
    Attach,
    Certified,
    Describe,
    GetStatus,
    Leave,
    MemberHello,
    Ping,
    RecordDigest,
    Redeem,
    Renew,
    encode_message,
)
from shoal.swarm.identity import Identity
from shoal.swarm.membership.certificate_issuer import Issuer
from shoal.swarm.membership.credentials import (
    CERTIFICATE_LIFETIME_S,
    Delegation,
    Revocations,
    parse_delegation,
    parse_invite,
    sign_delegation,
    sign_revocations,
)
from shoal.swarm.membership.member_transport import MemberTransport
from shoal.swarm.membership.membership_state import MembershipState
from shoal.swarm.membership.storage import SwarmFolder
from shoal.transport.byte_stream import ByteStream
from shoal.transport.frame_channel import FrameChannel
from shoal.transport.iroh_transport import IrohTransport
from shoal.types import PeerId
from tests.attacks.membership.attackers import (
    OWN_TOKENS,
    REFUSED,
    ROWS,
    Honest,
    Outsider,
    certificate,
    opening,
    own_certificate,
    own_proof,
    own_session,
)
from tests.private import PrivateServers
from tests.swarms import until


async def test_no_certificate(swarm: PrivateServers, honest: Honest, outsider: Outsider) -> None:
    """Every message that would open something is answered in the same way, also about a session that exists."""
    spec = await honest.model.client.find_model()
    async with honest.unharmed(), honest.model.client.session(spec, max_tokens=OWN_TOKENS) as session:
        await session.step(ROWS)
        held = own_session(swarm.servers[0])
        name, secret = held.terms.session, held.terms.secret
        for first in (
            RecordDigest(),
            Describe(""),
            GetStatus(),
            Leave(),
            Ping(1),
            opening(swarm),
            opening(swarm, name, secret),
            Attach("control", name, 0, secret),
            Attach("control", b"x" * 16, 0, b"k" * 16),
            Attach("send", name, 0, b"k" * 16, 1),
            Attach("receive", name, 0, b"k" * 16, 1),
            MemberHello(b""),
            Certified(b""),
        ):
            await outsider.learns_nothing(first)
        await outsider.learns_nothing(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await outsider.learns_nothing(os.urandom(4096))


async def test_no_certificate_over_iroh(tmp_path: Path) -> None:
    """The other transport has the same gate: one sentence, and whatever is behind the gate never runs."""
    key, thief, owner = (Identity.generate() for _ in range(3))
    state = MembershipState(owner.peer, SwarmFolder("home", tmp_path), SYSTEM_CLOCK)
    state.renewed(Issuer(owner.peer, owner).certify(key.peer, time.time()))
    served: list[str] = []

    async def serve(channel: FrameChannel) -> None:
        served.append(channel.peer)

    gate, outside = MemberTransport(IrohTransport(key.key), state), IrohTransport(thief.key)
    try:
        await gate.listen(serve)  # type: ignore[arg-type]  # it only notes who came
        stolen = MemberHello(state.certificate)
        by_self = MemberHello(Issuer(PeerId(owner.peer), thief).certify(thief.peer, time.time()))
        for said in (GetStatus(), stolen, by_self):
            channel = ByteStream(await outside.dial(key.peer, gate.addresses[0]))
            await channel.send(encode_frame(encode_message(said)))
            heard = b""
            with contextlib.suppress(ShoalError):
                while data := await channel.receive():
                    heard += data
            assert heard in (b"", REFUSED)
            channel.abort()
        assert gate.refused == 3
        assert not served
    finally:
        await outside.close()
        await gate.close()


async def test_an_expired_certificate(swarm: PrivateServers, honest: Honest, outsider: Outsider) -> None:
    """It was good until a minute ago."""
    now = time.time()
    times = {"issued_at": now - CERTIFICATE_LIFETIME_S, "expires_at": now - 60}
    async with honest.unharmed():
        old = certificate(swarm, outsider.key.peer, swarm.owner, **times)
        await outsider.learns_nothing(MemberHello(old), GetStatus())


async def test_a_revoked_node(swarm: PrivateServers, honest: Honest) -> None:
    """Its certificate has hours to go; the list says no, at the server that learnt it by gossip too."""
    async with honest.unharmed():
        async with swarm.client("out") as client:
            proof, key = own_certificate(client), client.identity
            swarm.revoke(key.peer)
            await until(lambda: all(server.network.member.is_revoked(key.peer) for server in swarm.servers))  # type: ignore[union-attr]
        revoked = Outsider(swarm, key)
        await revoked.learns_nothing(MemberHello(proof), GetStatus())
        await revoked.learns_nothing(MemberHello(proof, number=1 << 40), RecordDigest())
        await revoked.transport.close()


async def test_a_certificate_of_another_swarm(
    swarm: PrivateServers, honest: Honest, outsider: Outsider, tmp_path: Path
) -> None:
    """Perfectly good, elsewhere."""
    other = PrivateServers(swarm.model, tmp_path / "other")
    async with honest.unharmed():
        good = certificate(other, outsider.key.peer, other.owner)
        await outsider.learns_nothing(MemberHello(good), GetStatus())
        relabelled = certificate(swarm, outsider.key.peer, other.owner)
        await outsider.learns_nothing(MemberHello(relabelled), GetStatus())


async def test_a_stolen_certificate(swarm: PrivateServers, honest: Honest, outsider: Outsider) -> None:
    """A member's or a server's own bytes, shown by another key."""
    async with honest.unharmed():
        for server in swarm.servers:
            await outsider.learns_nothing(MemberHello(own_proof(server)), GetStatus())
        await outsider.learns_nothing(MemberHello(own_certificate(honest.model.client)), RecordDigest())
        await outsider.learns_nothing(Renew(own_certificate(honest.model.client)))


async def test_a_self_made_owner(swarm: PrivateServers, honest: Honest, outsider: Outsider) -> None:
    """Signed by the attacker, in the owner's name; a delegation of his own making; a key of small order."""
    me = outsider.key
    own_delegation = parse_delegation(sign_delegation(Delegation(me.peer, me.peer, 2e9), me))[1]
    by_self, nobody = certificate(swarm, me.peer, me), "01" + "00" * 31
    async with honest.unharmed():
        for proof in (
            by_self,
            certificate(swarm, me.peer, me, issuer=swarm.swarm),
            certificate(swarm, me.peer, me, swarm=me.peer),
            certificate(swarm, me.peer, me, delegation=own_delegation),
            certificate(swarm, me.peer, me, issuer=nobody),
            b"\1" + bytes(63) + certificate(swarm, me.peer, me, issuer=nobody)[64:],
        ):
            await outsider.learns_nothing(MemberHello(proof), GetStatus())


async def test_an_expired_delegation(swarm: PrivateServers, honest: Honest, outsider: Outsider) -> None:
    """A delegate certifies beyond its own end, before it, and with the delegation of another node."""
    delegate, now = Identity.generate(), time.time()
    ended = parse_delegation(sign_delegation(Delegation(swarm.swarm, delegate.peer, now - 60), swarm.owner))[1]
    others = parse_delegation(sign_delegation(Delegation(swarm.swarm, "ab" * 32, now + 60), swarm.owner))[1]
    async with honest.unharmed():
        for delegation, expires_at in ((ended, now + 3600), (ended, now - 60), (others, now + 60)):
            times = {"issued_at": now - 120, "expires_at": expires_at}
            proof = certificate(swarm, outsider.key.peer, delegate, delegation=delegation, **times)
            await outsider.learns_nothing(MemberHello(proof), GetStatus())


async def test_revocation_lists_rolled_back_or_forged(swarm: PrivateServers, honest: Honest) -> None:
    """An insider who brings an older list, one signed by himself or one without a signature changes nothing."""
    async with honest.unharmed(), swarm.client("insider") as insider:
        out = "ab" * 32
        swarm.revoke("cd" * 32)
        swarm.revoke(out)
        await until(lambda: all(server.network.member.is_revoked(PeerId(out)) for server in swarm.servers))  # type: ignore[union-attr]
        current = encode_frame(encode_message(MemberHello(own_certificate(insider), 1 << 40, news=True)))
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
                await channel.send(current + encode_frame(b"\x81\xa4type\xa7revoked", data))
                with contextlib.suppress(ShoalError):
                    await channel.receive()
                channel.abort()
        for server in swarm.servers:
            state = server.network.member.state  # type: ignore[union-attr]
            assert state.revocations.number == 2
            assert state.is_revoked(PeerId(out))
            assert not state.is_revoked(honest.model.client.identity.peer)
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
        await until(lambda: all(server.network.member.state.revocations.number == 2 for server in swarm.servers))  # type: ignore[union-attr]
        revoked = Outsider(swarm, key)
        for asked in (Renew(proof), Redeem(parse_invite(text)[1]), Renew(friend)):
            await revoked.learns_nothing(asked)
        for shown in (proof, friend):
            await revoked.learns_nothing(MemberHello(shown), GetStatus())
        stranger = Outsider(swarm)
        by_delegate = Issuer(PeerId(swarm.swarm), delegate, delegation).certify(stranger.key.peer, time.time())
        await stranger.learns_nothing(MemberHello(by_delegate), GetStatus())
        with pytest.raises(ShoalError):
            async with swarm.client("out", invite=""):
                pass
        for one in (revoked, stranger):
            await one.transport.close()
