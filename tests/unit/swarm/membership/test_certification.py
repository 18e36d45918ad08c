"""A node's certificate: where it comes from, what is asked of whom, and what is kept."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from shoal.errors import DialError, InviteError, NetworkError, NotAMember, RecordError, UsageError
from shoal.protocol.messages import GREETING, Certified
from shoal.swarm.discovery.ticket import Ticket
from shoal.swarm.identity import Identity
from shoal.swarm.membership import certification as module
from shoal.swarm.membership.applicant import Applicant
from shoal.swarm.membership.certification import Certification
from shoal.swarm.membership.credentials import (
    CERTIFICATE_LIFETIME_S,
    RENEWAL_WINDOW_S,
    Delegation,
    Invite,
    parse_delegation,
    parse_invite,
    verify_certificate,
)
from shoal.swarm.membership.owner import Owner
from shoal.swarm.membership.storage import PrivateSwarm, Role, SwarmFolder
from shoal.transport.channel import Channel, Transport
from shoal.transport.dialler import Dialler
from shoal.transport.frame_channel import FrameChannel
from shoal.transport.memory_transport import MemoryNetwork, MemoryTransport
from tests.unit.swarm.directory.test_records import FixedClock
from tests.unit.swarm.membership.statements import DAY_S, NOW, OTHER

ME = Identity.generate()


class World:
    """An owner's server that redeems and renews, and one node's certification at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = FixedClock()
        self.network = MemoryNetwork()
        self.owners = SwarmFolder("home", folder / "owner")
        self.key = self.owners.create_owner()
        self.owner = Owner(self.owners, self.clock)
        self.transports: list[Transport] = []

    async def start(self) -> None:
        """Let the owner's server answer."""
        applicant = Applicant(PrivateSwarm(name="home", home=self.folder / "owner"), "server", self.clock)
        peer = applicant.identity.peer
        member = await applicant.enter([MemoryTransport(peer, self.network)])
        self.transports, self.state = member.transports, member.state

        async def members_only(channel: Channel) -> None:
            await channel.close()

        await self.transports[0].listen(members_only)
        self.ticket = Ticket(peer, self.transports[0].addresses)

    async def stop(self) -> None:
        """The owner's server is away."""
        for transport in self.transports:
            await transport.close()

    def certification(
        self, identity: Identity = ME, role: Role = "server", clock: FixedClock | None = None
    ) -> Certification:
        """As it is at a start of the node."""
        clock = clock or self.clock
        dialler = Dialler([MemoryTransport(identity.peer, self.network)], clock=clock)
        folder = SwarmFolder("home", self.folder / identity.peer[:8])
        return Certification(folder, role, identity, dialler, clock)

    def invite(self) -> tuple[Invite, bytes]:
        """To be redeemed at the owner's server."""
        return parse_invite(self.owner.invite(DAY_S, self.ticket))


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """With the owner's server up."""
    world = World(tmp_path)
    await world.start()
    yield world
    await world.stop()


async def test_an_invite_becomes_a_certificate_that_is_kept(world: World) -> None:
    """The next start needs neither the invite nor the network; the redeemer is known as one who renews."""
    first = world.certification()
    assert (first.swarm, first.certificate) == ("", b"")
    await first.obtain(world.invite())
    found = verify_certificate(first.certificate, world.key.peer, NOW)
    assert (found.peer, found.expires_at) == (ME.peer, world.clock.now + CERTIFICATE_LIFETIME_S)
    assert first.renewal_due_at == (found.issued_at + found.expires_at) / 2
    await world.stop()
    again = world.certification()
    await again.obtain(None)
    assert (again.swarm, again.certificate) == (world.key.peer, first.certificate)
    assert again.peers == (str(world.ticket),)


async def test_a_certificate_that_has_ended_is_renewed_at_the_start(world: World) -> None:
    """As long as its window is open and it can be asked for; an invite that it came by is not used up again."""
    await world.certification().obtain(world.invite())
    world.clock.now = NOW + 2 * DAY_S
    renewed = world.certification()
    await renewed.obtain(None)
    assert verify_certificate(renewed.certificate, world.key.peer, world.clock.now)
    world.clock.now += 2 * DAY_S
    await world.stop()
    with pytest.raises(NetworkError):
        await world.certification().obtain(None)


async def test_who_was_away_too_long_needs_another_invite(world: World) -> None:
    """And is told so; with one it is in again."""
    await world.certification().obtain(world.invite())
    world.clock.now = NOW + RENEWAL_WINDOW_S + 2 * DAY_S
    with pytest.raises(NotAMember, match="ask for a new invite"):
        await world.certification().obtain(None)
    again = world.certification()
    await again.obtain(world.invite())
    assert verify_certificate(again.certificate, world.key.peer, world.clock.now)


async def test_an_invite_that_is_no_use(world: World) -> None:
    """One that another node has used, one that has ended, and one of another swarm than the name stands for."""
    used = world.invite()
    await world.certification(OTHER).obtain(used)
    with pytest.raises(NotAMember, match="another node has used it"):
        await world.certification().obtain(used)
    ended = world.invite()
    world.clock.now = NOW + 2 * DAY_S
    with pytest.raises(InviteError, match="expired"):
        await world.certification().obtain(ended)
    world.clock.now = NOW
    await world.certification().obtain(world.invite())
    elsewhere = SwarmFolder("home", world.folder / "elsewhere")
    elsewhere.create_owner()
    foreign = parse_invite(Owner(elsewhere, world.clock).invite(DAY_S, world.ticket))
    with pytest.raises(InviteError, match="another swarm here already"):
        await world.certification().obtain(foreign)


async def test_nobody_renews(world: World) -> None:
    """The last reason is told; those who were met come before those who are kept, and what is held stays."""
    node = world.certification()
    await node.obtain(world.invite())
    before = node.certificate
    await world.stop()
    gone = Ticket(OTHER.peer, (f"memory://{OTHER.peer}",))
    with pytest.raises(DialError, match=world.ticket.peer[:8]):
        await node.renew([gone])
    assert node.certificate == before


async def test_who_renewed_last_is_asked_first(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few are kept, each once, under its newest addresses."""
    monkeypatch.setattr(module, "MAX_KEPT_PEERS", 2)
    node = world.certification()
    await node.obtain(world.invite())
    others = [str(Ticket(Identity.generate().peer, ("tls://127.0.0.1:1",))) for _ in range(2)]
    for text in others:
        node._keep_certificate(node.swarm, node.certificate, (text,))
    assert node.peers == (others[1], others[0])
    moved = str(Ticket(Ticket.parse(others[0]).peer, ("tls://127.0.0.1:2",)))
    node._keep_certificate(node.swarm, node.certificate, (moved,))
    assert set(node.peers) == {moved, others[1]}


async def test_who_may_certify_others(world: World) -> None:
    """A delegate's server, until its delegation ends; no client, and no server without one."""
    server, client = world.certification(), world.certification(OTHER, "client")
    for node, identity in ((server, ME), (client, OTHER)):
        await node.obtain(world.invite())
        assert node.redeemer() is None
        node.delegate(Delegation(world.key.peer, identity.peer, NOW + DAY_S), delegation_of(world, identity))
    assert client.redeemer() is None
    redeemer = server.redeemer()
    assert redeemer is not None
    with pytest.raises(InviteError, match="is for node"):
        server.delegate(Delegation(world.key.peer, OTHER.peer, NOW + DAY_S), b"")


def delegation_of(world: World, identity: Identity) -> bytes:
    """The owner's word for this node."""
    return parse_delegation(world.owner.delegate(identity.peer, DAY_S))[1]


async def test_a_revoked_node_is_out_at_its_next_start(world: World) -> None:
    """By the list that it has itself, without asking anybody; its old certificate does not help."""
    await world.certification().obtain(world.invite())
    world.owner.revoke(ME.peer)
    node = SwarmFolder("home", world.folder / ME.peer[:8])
    node.keep_revocations(world.owners.revocations())
    await world.stop()
    with pytest.raises(NotAMember, match="out of 'home'"):
        await world.certification().obtain(None)


async def test_a_file_that_cannot_be_written_loses_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The certificate that came holds all the same."""
    node = world.certification()
    await node.obtain(world.invite())
    world.clock.now += 1.0
    monkeypatch.setattr("shoal.swarm.membership.storage.os.replace", refuse)
    before = node.certificate
    with pytest.raises(UsageError, match="cannot be written"):
        await node.renew(())
    assert node.certificate != before


def refuse(source: Path, target: Path) -> None:
    """A disk that is full."""
    raise OSError(28, "No space left on device")


async def test_a_redeemer_that_says_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks it is told so in the end; without that its own keeping would stop for good."""
    monkeypatch.setattr(module, "ASK_S", 0.05)
    silent = Identity.generate()

    async def says_nothing(channel: Channel) -> None:
        await asyncio.Event().wait()

    listening = MemoryTransport(silent.peer, world.network)
    await listening.listen(says_nothing)
    invite = parse_invite(world.owner.invite(DAY_S, Ticket(silent.peer, listening.addresses)))
    try:
        async with asyncio.timeout(5.0):
            with pytest.raises(NetworkError, match="has not answered"):
                await world.certification().obtain(invite)
    finally:
        await listening.close()


async def test_a_node_that_was_put_out_comes_back_as_another_one(world: World) -> None:
    """With a new invite it gets a new key, for the next start; without one it is told so shortly."""
    folder = SwarmFolder("home", world.folder / "back")

    def node() -> tuple[Identity, Certification]:
        identity = folder.node("server").identity()
        dialler = Dialler([MemoryTransport(identity.peer, world.network)], clock=world.clock)
        return identity, Certification(folder, "server", identity, dialler, world.clock)

    first, certification = node()
    await certification.obtain(world.invite())
    world.owner.revoke(first.peer)
    world.state.poll()  # the owner's server looks every second
    invite = world.invite()
    with pytest.raises(NotAMember, match="It has a new key now") as caught:
        await node()[1].obtain(invite)
    assert len(str(caught.value)) < 200
    second, again = node()
    assert second.peer != first.peer
    await again.obtain(invite)
    assert verify_certificate(again.certificate, world.key.peer, NOW).peer == second.peer
    assert (folder.path / "server.out-1" / "node.key").is_file()


async def test_a_member_with_an_invite_to_spare_stays_who_it_is(world: World) -> None:
    """The invite is not used, and can be given to another node."""
    await world.certification().obtain(world.invite())
    spare = world.invite()
    again = world.certification()
    await again.obtain(spare)
    assert verify_certificate(again.certificate, world.key.peer, NOW).peer == ME.peer
    await world.certification(OTHER).obtain(spare)


async def answering(world: World, data: bytes) -> tuple[Ticket, Transport]:
    """A node that answers every question with this certificate, as any member may."""
    who = Identity.generate()
    listening = MemoryTransport(who.peer, world.network)

    async def answer(channel: Channel) -> None:
        frames = FrameChannel(channel)
        await frames.receive(GREETING)
        await frames.send(Certified(data))
        await frames.close()

    await listening.listen(answer)
    return Ticket(who.peer, listening.addresses), listening


async def test_who_gives_the_same_certificate_again_renews_nothing(world: World) -> None:
    """The next one is asked; otherwise a member would be out in a day, for another one's word."""
    node = world.certification()
    await node.obtain(world.invite())
    ticket, listening = await answering(world, node.certificate)
    world.clock.now += CERTIFICATE_LIFETIME_S / 2
    due_at = node.renewal_due_at
    await node.renew([ticket])
    assert node.renewal_due_at > due_at
    assert str(ticket) not in node.peers
    await world.stop()
    with pytest.raises(NetworkError):
        await node.renew([ticket])
    await listening.close()


async def test_a_redeemer_whose_clock_is_ahead_puts_nobody_out(world: World) -> None:
    """What it gives does not hold yet; the membership that is here does, whatever invite comes with it."""
    node = world.certification()
    await node.obtain(world.invite())
    here = FixedClock()
    here.now = NOW + 1.0
    world.clock.now += 7200.0
    again = world.certification(clock=here)
    await again.obtain(world.invite())
    assert again.certificate == node.certificate
    with pytest.raises(RecordError, match="is a clock wrong"):
        await world.certification(OTHER, clock=here).obtain(world.invite())
    here.now += CERTIFICATE_LIFETIME_S
    world.clock.now = here.now + 7200.0
    with pytest.raises(RecordError, match="is a clock wrong"):
        await world.certification(clock=here).obtain(world.invite())
    assert SwarmFolder("home", world.folder / ME.peer[:8]).node("server").kept() is not None


@pytest.mark.parametrize("ahead_s", [-3000.0, 600.0, 3000.0])
async def test_a_redeemer_whose_clock_is_off(world: World, ahead_s: float) -> None:
    """By less than an hour: what it gives holds at once, and is renewed when it is due."""
    here = FixedClock()
    here.now = NOW - ahead_s
    node = world.certification(clock=here)
    await node.obtain(world.invite())
    for _ in range(3):
        due_at = here.now = node.renewal_due_at
        world.clock.now = here.now + ahead_s
        await node.renew(())
        assert node.renewal_due_at > due_at + CERTIFICATE_LIFETIME_S / 3


async def test_a_clock_that_was_set_back_ends_no_keeping(world: World) -> None:
    """A certificate of the future has a half-life as well."""
    node = world.certification()
    await node.obtain(world.invite())
    due_at = node.renewal_due_at
    world.clock.now -= DAY_S
    assert node.renewal_due_at == due_at
    with pytest.raises(NotAMember, match="is a clock wrong"):
        await world.certification().obtain(None)


async def test_what_is_left_of_a_spoilt_membership(world: World) -> None:
    """Tickets that are none are left out; a certificate that is none is told, with its file."""
    node = world.certification()
    await node.obtain(world.invite())
    folder = SwarmFolder("home", world.folder / ME.peer[:8]).node("server")
    kept = folder.kept()
    assert kept is not None
    folder.keep(msgspec.structs.replace(kept, peers=("nonsense", *kept.peers)))
    world.clock.now += CERTIFICATE_LIFETIME_S + 1.0
    again = world.certification()
    await again.obtain(None)
    assert again.peers == kept.peers
    folder.keep(msgspec.structs.replace(kept, certificate=kept.certificate[:-1]))
    with pytest.raises(UsageError, match=r"server.* is damaged"):
        await world.certification().obtain(None)
