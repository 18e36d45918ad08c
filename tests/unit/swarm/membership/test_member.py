"""A member keeps its membership, whatever happens to its files and to those it asks."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shoal.errors import NetworkError, ProtocolError, RecordError, Refused, ShoalError
from shoal.swarm.directory.directory import Directory
from shoal.swarm.discovery.ticket import Ticket
from shoal.swarm.identity import Identity
from shoal.swarm.membership.applicant import Applicant
from shoal.swarm.membership.certificate_issuer import Issuer
from shoal.swarm.membership.credentials import CERTIFICATE_LIFETIME_S
from shoal.swarm.membership.member import MAX_CONTACTS, POLL_S, RENEWAL_RETRY_S, Member
from shoal.swarm.membership.membership_state import MembershipState
from shoal.swarm.membership.owner import Owner
from shoal.swarm.membership.storage import PrivateSwarm, SwarmFolder
from shoal.transport.channel import Transport
from tests.records import signed_record
from tests.support.virtual_clock import VirtualClock
from tests.unit.swarm.membership.statements import NODE, OTHER


async def test_a_damaged_list_does_not_end_the_keeping(tmp_path: Path) -> None:
    """The list in memory goes on to hold, and the next good one is taken."""
    clock = VirtualClock()
    folder = SwarmFolder("home", tmp_path)
    folder.create_owner()
    node = await Applicant(PrivateSwarm(name="home", home=tmp_path), "server", clock).enter([])
    spread: list[int] = []

    async def tell() -> None:
        spread.append(node.state.revocations.number)

    keeping = asyncio.create_task(node.keep(Directory(clock), tell))
    try:
        await clock.advance(POLL_S)
        folder.keep_revocations(b"nonsense")
        await clock.advance(2 * POLL_S)
        assert not keeping.done()
        (folder.path / "revocations").unlink()
        Owner(folder, clock).revoke(Identity.generate().peer)
        await clock.advance(2 * POLL_S)
        assert spread == [1]
    finally:
        keeping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await keeping


async def owners_node(home: Path, clock: VirtualClock, *transports: Transport) -> Member:
    """The server of a swarm's owner, inside it."""
    folder = SwarmFolder("home", home)
    if folder.owner() is None:
        folder.create_owner()
    return await Applicant(PrivateSwarm(name="home", home=home), "server", clock).enter(transports)


@contextlib.asynccontextmanager
async def kept(node: Member, directory: Directory) -> AsyncIterator[None]:
    """Inside, the node keeps its membership."""

    async def no_node_to_tell() -> None:
        raise NetworkError("no node answers")

    keeping = asyncio.create_task(node.keep(directory, no_node_to_tell))
    try:
        yield
        assert not keeping.done()
    finally:
        keeping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await keeping


async def test_a_certificate_is_renewed_from_its_half_life_on(tmp_path: Path) -> None:
    """Not before, and in the greeting and beside the record too."""
    clock = VirtualClock()
    node = await owners_node(tmp_path, clock)
    first = node.proof
    async with kept(node, Directory(clock)):
        await clock.advance(2 * POLL_S)
        assert node.proof == first
        clock._wall += CERTIFICATE_LIFETIME_S / 2
        await clock.advance(2 * POLL_S)
    assert node.proof != first
    assert node.state.present(NODE.peer).certificate == node.proof
    found = SwarmFolder("home", tmp_path).node("server").kept()
    assert found is not None
    assert found.certificate == node.proof


async def test_records_of_others_than_members_are_kept_out(tmp_path: Path) -> None:
    """No record comes in without a certificate, nor with one of a node that is out."""
    clock = VirtualClock()
    node, directory = await owners_node(tmp_path, clock), Directory(clock)
    node.guard(directory)
    record, key = signed(NODE, clock), SwarmFolder("home", tmp_path).owner()
    assert key is not None
    proof = Issuer(key.peer, key).certify(NODE.peer, clock.wall())
    assert not directory.add(record)
    Owner(SwarmFolder("home", tmp_path), clock).revoke(NODE.peer)
    node.state.poll()
    assert not directory.add(record, proof=proof)
    assert node.is_revoked(NODE.peer)
    assert not node.is_revoked(OTHER.peer)
    assert not node.is_revoked(None)
    assert directory.dropped == {"refused": 2}


def signed(identity: Identity, clock: VirtualClock) -> bytes:
    """This node's record, from now on."""
    return signed_record(identity, issued_at=clock.wall(), expires_at=clock.wall() + 300).data


async def test_a_few_servers_are_remembered(tmp_path: Path) -> None:
    """Those kept before as long as they are up, and in the next run too; the node itself is not one of them."""
    clock = VirtualClock()
    node, directory = await owners_node(tmp_path, clock), Directory(clock)
    node.remember(directory)
    assert node.tickets == []
    others = [Identity.generate() for _ in range(MAX_CONTACTS + 2)]
    for other in others[:2]:
        directory.add(signed(other, clock))
    node.remember(directory)
    before = set(node.tickets)
    assert {Ticket.parse(text).peer for text in before} == {other.peer for other in others[:2]}
    for other in others[2:]:
        directory.add(signed(other, clock))
    node.remember(directory)
    assert len(node.tickets) == MAX_CONTACTS
    assert before < set(node.tickets)
    assert (await owners_node(tmp_path, clock)).tickets == node.tickets
    directory.remove(others[0].peer)
    node.remember(directory)
    assert others[0].peer not in {Ticket.parse(text).peer for text in node.tickets}


async def test_where_a_server_listens_is_kept_for_invites(tmp_path: Path) -> None:
    """Its own ticket is not one to find the swarm by; a client of the machine uses it."""
    clock = VirtualClock()
    node = await owners_node(tmp_path, clock)
    identity = SwarmFolder("home", tmp_path).node("server").identity()
    ticket = str(Ticket(identity.peer, ("tls://127.0.0.1:1",)))
    node.listening(ticket)
    assert node.tickets == []
    client = await Applicant(PrivateSwarm(name="home", home=tmp_path), "client", clock).enter([])
    assert client.tickets == [ticket]
    assert client.swarm_name == "home"


async def test_tickets_that_were_spoilt_are_left_out(tmp_path: Path) -> None:
    """A file of this machine that is cut short keeps nobody out of the swarm."""
    clock = VirtualClock()
    await owners_node(tmp_path, clock)
    SwarmFolder("home", tmp_path).node("server").keep_ticket("shoal1-ks")
    client = await Applicant(PrivateSwarm(name="home", home=tmp_path), "client", clock).enter([])
    assert client.tickets == []


class NoRenewals:
    """A certificate that no node renews."""

    certificate, peers, contacts = b"certificate", (), ()
    renewal_due_at = 0.0

    def __init__(self, clock: VirtualClock) -> None:
        self.asked_at: list[float] = []
        self._clock = clock

    error: ShoalError = NetworkError("no node answers")

    async def renew(self, peers: list[Ticket]) -> None:
        """Certification."""
        self.asked_at.append(self._clock.monotonic())
        raise self.error


@pytest.mark.parametrize("error", [NetworkError("none"), ProtocolError("nonsense"), RecordError("none"), Refused("no")])
async def test_who_does_not_renew_is_not_asked_all_the_time(tmp_path: Path, error: ShoalError) -> None:
    """Once in RENEWAL_RETRY_S, until one does, whatever the others answer."""
    clock, folder = VirtualClock(), SwarmFolder("home", tmp_path)
    certification = NoRenewals(clock)
    certification.error = error
    state = MembershipState(NODE.peer, folder, clock)
    node = Member(NODE.peer, folder, certification, state, [], clock)  # type: ignore[arg-type]  # by its shape
    async with kept(node, Directory(clock)):
        await clock.advance(3 * RENEWAL_RETRY_S)
    assert certification.asked_at == [POLL_S + index * RENEWAL_RETRY_S for index in range(3)]
