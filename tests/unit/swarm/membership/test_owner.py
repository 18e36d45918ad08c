"""What the owner of a private swarm may do with its folder."""

from __future__ import annotations

import pytest

from shoal.errors import UsageError
from shoal.swarm.discovery.ticket import Ticket
from shoal.swarm.membership import owner as module
from shoal.swarm.membership.credentials import parse_delegation, parse_invite
from shoal.swarm.membership.owner import MIN_PREFIX_CHARS, Owner
from shoal.swarm.membership.storage import SwarmFolder
from tests.unit.swarm.directory.test_records import FixedClock
from tests.unit.swarm.membership.statements import DAY_S, DELEGATE, NODE, NOW, OTHER

TICKET = Ticket(DELEGATE.peer, ("tls://127.0.0.1:1",))


@pytest.fixture
def owner(folder: SwarmFolder) -> Owner:
    """The owner of a swarm that was just made."""
    folder.create_owner()
    return Owner(folder, FixedClock())


def test_without_the_key_there_is_no_owner(folder: SwarmFolder) -> None:
    """The folder of a member is not enough."""
    folder.node("server").identity()
    with pytest.raises(UsageError, match="owner's key"):
        Owner(folder, FixedClock())


def test_an_invite_names_where_it_is_redeemed(owner: Owner, folder: SwarmFolder) -> None:
    """The owner's own server unless told otherwise; an error while it is not known where that is."""
    with pytest.raises(UsageError, match="start the owner's server first"):
        owner.invite(DAY_S)
    folder.node("server").keep_ticket(str(TICKET))
    by_default, _ = parse_invite(owner.invite(DAY_S))
    assert (by_default.ticket, by_default.expires_at, by_default.name) == (TICKET, NOW + DAY_S, "home")
    elsewhere = Ticket(NODE.peer, ("tls://127.0.0.1:2",))
    assert parse_invite(owner.invite(DAY_S, elsewhere))[0].ticket == elsewhere


def test_invites_are_listed_with_who_used_them(owner: Owner, folder: SwarmFolder) -> None:
    """In the order in which they expire."""
    late, early = (parse_invite(owner.invite(seconds, TICKET))[0] for seconds in (2 * DAY_S, DAY_S))
    folder.node("server").claim(late.id, NODE.peer)
    assert owner.issued() == [(early, None), (late, NODE.peer)]


def test_a_delegation_is_for_one_node(owner: Owner) -> None:
    """Named by its id or by its ticket; anything else is refused."""
    for text in (DELEGATE.peer, f" {TICKET}\n"):
        delegation, _ = parse_delegation(owner.delegate(text, DAY_S))
        assert (delegation.swarm, delegation.peer, delegation.expires_at) == (
            owner.key.peer,
            DELEGATE.peer,
            NOW + DAY_S,
        )
    with pytest.raises(UsageError):
        owner.delegate("no node", DAY_S)


def test_each_list_has_the_next_number(owner: Owner, folder: SwarmFolder) -> None:
    """It names who was out before too, and is kept for the next time."""
    assert owner.revocations().number == 0
    owner.revoke(NODE.peer)
    invite, _ = parse_invite(owner.invite(DAY_S, TICKET))
    owner.revoke(invite.id.hex().upper())
    found = Owner(folder, FixedClock()).revocations()
    assert (found.number, found.nodes, found.invites) == (2, {NODE.peer}, {invite.id})


def test_the_beginning_of_an_id_is_enough(owner: Owner, folder: SwarmFolder) -> None:
    """If it is long enough, and of one id that is known: an invite's, or that of a node which used one."""
    invite, _ = parse_invite(owner.invite(DAY_S, TICKET))
    folder.node("server").claim(invite.id, NODE.peer)
    beginning = NODE.peer[:MIN_PREFIX_CHARS]
    for text in ("", beginning[:-1], OTHER.peer[:MIN_PREFIX_CHARS], "x" * 64):
        with pytest.raises(UsageError, match="neither a node id"):
            owner.revoke(text)
    assert owner.revoke(beginning).nodes == {NODE.peer}
    assert owner.revoke(invite.id.hex()[:MIN_PREFIX_CHARS]).invites == {invite.id}


def test_what_cannot_be_revoked(owner: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    """The swarm itself, and one node more than a list holds; the list stays as it was."""
    with pytest.raises(UsageError, match="own id"):
        owner.revoke(owner.key.peer)
    monkeypatch.setattr(module, "MAX_REVOKED", 1)
    owner.revoke(NODE.peer)
    with pytest.raises(UsageError, match="holds 1 nodes"):
        owner.revoke(OTHER.peer)
    assert owner.revocations().nodes == {NODE.peer}


@pytest.mark.parametrize("spoilt", [b"", b"\xff\x00", b"shoal-invite1-abc"])
def test_a_spoilt_file_keeps_nobody_from_being_revoked(owner: Owner, folder: SwarmFolder, spoilt: bytes) -> None:
    """An invite, or the note of who used it: the others are listed, and the log names the file."""
    invites = [parse_invite(owner.invite(DAY_S, TICKET))[0] for _ in range(2)]
    for invite in invites:
        folder.node("server").claim(invite.id, NODE.peer)
    (folder.path / "invites" / invites[0].id.hex()).write_bytes(spoilt)
    (folder.path / "server" / "redeemed" / invites[1].id.hex()).write_bytes(spoilt)
    assert [one.invite for one in owner.issued()] == invites[1:]
    assert owner.revoke(invites[1].id.hex()[:MIN_PREFIX_CHARS]).invites == {invites[1].id}
    assert folder.node("server").claim(invites[1].id, NODE.peer) != NODE.peer


def test_files_that_a_new_statement_needs_are_named(owner: Owner, folder: SwarmFolder) -> None:
    """What is signed next goes on from them: a list that is lost would let everybody in again."""
    folder.node("server").keep_ticket("shoal1-cut")
    with pytest.raises(UsageError, match="server is damaged: start the server again"):
        owner.invite(DAY_S)
    owner.revoke(NODE.peer)
    folder.keep_revocations(folder.revocations()[:-1])
    with pytest.raises(UsageError, match=r"revocation list in .*home is damaged"):
        owner.revoke(OTHER.peer)
