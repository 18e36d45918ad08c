"""How a node comes into a private swarm: what it is given, and what it may go by."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal.errors import InviteError, UsageError
from shoal.swarm.discovery.address_book import AddressBook
from shoal.swarm.identity import Identity
from shoal.swarm.membership.applicant import Applicant
from shoal.swarm.membership.credentials import verify_certificate
from shoal.swarm.membership.member_transport import MemberTransport
from shoal.swarm.membership.owner import Owner
from shoal.swarm.membership.storage import PrivateSwarm, Role, SwarmFolder
from shoal.transport.memory_transport import MemoryNetwork, MemoryTransport
from tests.unit.swarm.directory.test_records import FixedClock
from tests.unit.swarm.membership.statements import DAY_S, NOW, OTHER
from tests.unit.swarm.membership.test_owner import TICKET


def applicant(home: Path, role: Role = "server", identity: Identity | None = None, **given: str) -> Applicant:
    """A node with this home."""
    return Applicant(PrivateSwarm(home=home, **given), role, FixedClock(), identity)


def test_a_swarm_has_to_be_named(tmp_path: Path) -> None:
    """By a name that stands for something here, or by an invite, which brings one; nothing is made for less."""
    with pytest.raises(UsageError, match="by its name here, or by an invite"):
        applicant(tmp_path)
    with pytest.raises(UsageError, match="no private swarm 'home' here"):
        applicant(tmp_path, name="home")
    assert list(tmp_path.iterdir()) == []
    folder = SwarmFolder("home", tmp_path / "owner")
    folder.create_owner()
    invite = Owner(folder, FixedClock()).invite(DAY_S, TICKET)
    made = applicant(tmp_path, invite=invite)
    assert SwarmFolder("home", tmp_path).node("server").identity().peer == made.identity.peer
    applicant(tmp_path, invite=invite, name="mine")
    assert SwarmFolder("mine", tmp_path).path.exists()


def test_an_invite_s_name_that_is_taken(tmp_path: Path) -> None:
    """Whoever invites chooses it: it does not stand in for a swarm that is remembered here."""
    folder = SwarmFolder("home", tmp_path / "owner")
    folder.create_owner()
    invite = Owner(folder, FixedClock()).invite(DAY_S, TICKET)
    AddressBook(tmp_path).remember("home", [str(TICKET)])
    with pytest.raises(InviteError, match="another name"):
        applicant(tmp_path, "client", invite=invite)
    assert [path.name for path in (tmp_path / "swarms" / "home").iterdir()] == ["tickets"]
    applicant(tmp_path, "client", invite=invite, name="mine")


def test_damaged_texts_are_named(tmp_path: Path) -> None:
    """An invite, and a delegation."""
    with pytest.raises(InviteError, match="shoal-invite1"):
        applicant(tmp_path, invite="nonsense")
    with pytest.raises(InviteError, match="shoal-delegation1"):
        applicant(tmp_path, name="home", delegation="nonsense")


def test_a_key_of_its_own_goes_before_the_folders(tmp_path: Path) -> None:
    """Each role has another one otherwise."""
    SwarmFolder("home", tmp_path).create_owner()
    assert applicant(tmp_path, name="home", identity=OTHER).identity is OTHER
    server, client = (applicant(tmp_path, role, name="home").identity.peer for role in ("server", "client"))
    assert server != client
    assert applicant(tmp_path, name="home").identity.peer == server


async def test_the_owner_lets_itself_in(tmp_path: Path) -> None:
    """Without a network; each transport has a gate before it."""
    owner = SwarmFolder("home", tmp_path).create_owner()
    node = applicant(tmp_path, name="home")
    plain = MemoryTransport(node.identity.peer, MemoryNetwork())
    member = await node.enter([plain])
    assert verify_certificate(member.proof, owner.peer, NOW).peer == node.identity.peer
    [gate] = member.transports
    assert isinstance(gate, MemberTransport)
    assert gate.name == plain.name


async def test_only_a_server_renews_for_others(tmp_path: Path) -> None:
    """Its greeting says so."""
    SwarmFolder("home", tmp_path).create_owner()
    for role in ("server", "client"):
        member = await applicant(tmp_path, role, name="home").enter([])
        assert member.state.present(OTHER.peer).renews is (role == "server")


async def test_a_delegation_is_for_its_node(tmp_path: Path) -> None:
    """Another one's is refused; a node's own is kept."""
    folder = SwarmFolder("home", tmp_path)
    folder.create_owner()
    owner, me = Owner(folder, FixedClock()), folder.node("server").identity().peer
    with pytest.raises(InviteError, match=f"for node {OTHER.peer[:8]}"):
        await applicant(tmp_path, name="home", delegation=owner.delegate(OTHER.peer, DAY_S)).enter([])
    await applicant(tmp_path, name="home", delegation=owner.delegate(me, DAY_S)).enter([])
    kept = folder.node("server").kept()
    assert kept is not None
    assert kept.delegation


async def test_a_node_without_an_invite_is_not_let_in(tmp_path: Path) -> None:
    """The folder alone, as one that holds an earlier node's key, makes no node a member."""
    SwarmFolder("home", tmp_path).node("server").identity()
    with pytest.raises(UsageError, match="give an invite"):
        await applicant(tmp_path, name="home").enter([])
