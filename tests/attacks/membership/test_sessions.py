"""An insider reaches for the sessions of others, and lets servers dial for him."""

from __future__ import annotations

import asyncio
import itertools
import os
import time

import pytest

from shoal.protocol.messages import Attach, Close, LinkGrant, LinkState, ReceivedUpTo, Redirect, Refusal, Rewind
from shoal.server.sessions import redirector
from shoal.server.sessions.dial_limits import FAILED_AT_ONCE, FAILED_PER_S
from shoal.swarm.directory.records import Acceptance, sign_acceptance, sign_record
from shoal.swarm.identity import Identity
from tests.attacks.membership.attackers import OWN_TOKENS, ROWS, Honest, altered, dial, opening, own_session, refused
from tests.private import PrivateServers
from tests.support.any_message import ANY


async def test_someone_elses_session(swarm: PrivateServers, honest: Honest) -> None:
    """An insider who has learnt a session's id can neither open, take over, rewind nor close it."""
    server = swarm.servers[0]
    spec = await honest.model.client.find_model()
    async with honest.unharmed(), swarm.client("insider") as insider:
        async with honest.model.client.session(spec, max_tokens=OWN_TOKENS) as session:
            first = await session.step(ROWS)
            held = own_session(server)
            name = held.terms.session
            for attack in (
                (opening(swarm, name),),
                (Attach("control", name, held.incarnation, bytes(16)), Close()),
                (Attach("control", name, 1 << 40, b"k" * 16), Rewind(1, 0, 0)),
                (Attach("send", name, held.incarnation, b"k" * 16, 1), Rewind(1, 0, 0)),
                (Attach("receive", name, held.incarnation, b"k" * 16, 1 << 20),),
            ):
                await refused(insider, server, *attack)
            assert own_session(server) is held
            assert held.owner == honest.model.client.identity.peer
            assert (held.receiver.epoch, held.receiver.position) == (0, ROWS.shape[-2])
            await session.rewind(0)
            assert (await session.step(ROWS)).equal(first)


async def test_the_link_token_of_another_session(swarm: PrivateServers, honest: Honest) -> None:
    """Right token but not the node that it was given to, on that session and on one's own; right node, another token."""
    first, second = swarm.servers
    spec = await honest.model.client.find_model()
    async with honest.unharmed(), swarm.client("insider") as insider:
        async with honest.model.client.session(spec, max_tokens=OWN_TOKENS) as session:
            output = await session.step(ROWS)
            into = own_session(second)
            out = into.outgoing[False].grant
            assert into.upstream is not None
            assert out is not None
            assert into.upstream.peer == first.identity.peer
            own = opening(swarm, os.urandom(16), span=second.record.span)
            control = await dial(insider, second)
            await control.send(own)
            await control.receive(ANY)
            for role, grant in (("send", into.upstream), ("receive", out)):
                for name in (into.terms.session, own.session, b"x" * 16):
                    attach = Attach(role, name, into.incarnation, grant.token, grant.generation)  # type: ignore[arg-type]
                    await refused(insider, second, attach, ReceivedUpTo(0, 0))
            control.abort()
            name, given = into.terms.session, into.upstream
            for token, generation in ((own.upstream.token, given.generation), (given.token, given.generation + 1)):
                attach = Attach("send", name, into.incarnation, token, generation)  # by the right node, as it were
                await refused(first, second, attach)
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
            control = await dial(insider, first)
            await control.send(opening(swarm, session=os.urandom(16)))
            await control.receive(ANY)
            await control.send(Redirect(LinkGrant(1, peer, b"u" * 16), record, acceptance))
            assert isinstance((await control.receive(ANY))[0], Refusal)
            await control.close()
    listening.close()
    await listening.wait_closed()
    assert not knocked


async def test_a_redirect_to_an_accomplice(
    swarm: PrivateServers, honest: Honest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An accomplice agrees and gives a victim's address for its own: the victim is dialled a bounded number of times."""
    monkeypatch.setattr(redirector, "FAILED_DIAL_S", 0.0)  # else the time that a failed dial takes bounds them too
    first, knocked = swarm.servers[0], list[object]()
    victim = await asyncio.start_server(lambda reader, writer: knocked.append(writer.close()), "127.0.0.1", 0)
    address = f"tls://127.0.0.1:{victim.sockets[0].getsockname()[1]}"
    friend = Identity.generate()
    record = sign_record(altered(first.record, peer=friend.peer, addresses=(address,)), friend).data
    async with victim, honest.unharmed(), swarm.client("insider") as insider:
        control = await dial(insider, first)
        await control.send(opening(swarm))
        await control.receive(ANY)
        began = time.monotonic()
        for generation in itertools.count(1):
            agreed = Acceptance(b"s" * 16, friend.peer, first.identity.peer, generation, time.time() + 60)
            link = LinkGrant(generation, friend.peer, b"u" * 16)
            await control.send(Redirect(link, record, sign_acceptance(agreed, friend)))
            while (state := (await control.expect(LinkState))[0]).state != "down":
                pass
            if "dials" in state.detail:
                break
        passed_s = time.monotonic() - began
        await control.close()
    assert FAILED_AT_ONCE <= len(knocked) <= FAILED_AT_ONCE + FAILED_PER_S * (passed_s + 1)
