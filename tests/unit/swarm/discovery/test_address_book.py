"""Swarms that a machine remembers."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal.errors import UsageError
from shoal.swarm.discovery.address_book import MAX_TICKETS, AddressBook
from shoal.swarm.discovery.ticket import Ticket
from shoal.swarm.identity import Identity
from shoal.swarm.membership.storage import StoredMembership, SwarmFolder
from tests.records import signed_record


def ticket(port: int) -> str:
    """A ticket of a member of its own."""
    return str(Ticket(Identity.generate().peer, (f"tls://127.0.0.1:{port}",)))


def test_what_is_remembered_is_found_again(tmp_path: Path) -> None:
    """By its name; private swarms of a client stand beside it, those of a server do not."""
    book, tickets = AddressBook(tmp_path), [ticket(1), ticket(2)]
    assert book.names() == []
    assert book.tickets("home") == ()
    book.remember("home", tickets)
    SwarmFolder("club", tmp_path).node("client").keep(StoredMembership("swarm", b""))
    SwarmFolder("mine", tmp_path).node("server").keep(StoredMembership("swarm", b""))
    assert AddressBook(tmp_path).tickets("home") == tuple(tickets)
    assert AddressBook(tmp_path).names() == ["club", "home"]
    assert book.tickets("club") == ()


def test_names_are_told_apart(tmp_path: Path) -> None:
    """A private swarm's is taken; some cannot be names; a file that was spoilt gives what is left of it."""
    book = AddressBook(tmp_path)
    SwarmFolder("club", tmp_path).create_owner()
    with pytest.raises(UsageError, match="private swarm"):
        book.remember("club", [ticket(1)])
    with pytest.raises(UsageError, match="name"):
        book.tickets("../club")
    good = ticket(3)
    book.remember("home", [good])
    path = tmp_path / "swarms" / "home" / "tickets"
    path.write_text(f"nonsense\n{good}\n")
    assert book.tickets("home") == (good,)
    path.write_text("nonsense\n")
    with pytest.raises(UsageError, match="shoal join TICKET --as home"):
        book.tickets("home")


def test_a_swarm_is_found_when_its_first_member_has_gone(tmp_path: Path) -> None:
    """A few members that were met are remembered beside it."""
    book, first = AddressBook(tmp_path), ticket(1)
    met = [signed_record(Identity.generate()).record for _ in range(6)]
    book.refresh("home", [first], met)
    kept = book.tickets("home")
    assert kept[0] == first
    assert len(kept) == MAX_TICKETS
    assert {Ticket.parse(one).peer for one in kept[1:]} <= {record.peer for record in met}
