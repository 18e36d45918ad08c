"""Tickets as text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import TicketError
from shoal.swarm.directory.records import MAX_ADDRESSES
from shoal.swarm.discovery.ticket import MAX_TICKET_CHARS, Ticket


def test_tickets_are_one_string() -> None:
    """A ticket survives being copied; what is not one is named."""
    ticket = Ticket("ab" * 32, ("tls://[::1]:4433", "iroh://127.0.0.1:1"))
    assert Ticket.parse(f"  {ticket}\n") == ticket
    for text in ("", "hello", "shoal1-", "shoal1-!!!", str(ticket)[:-9], "shoal1-" + "A" * 5000):
        with pytest.raises(TicketError):
            Ticket.parse(text)


@given(st.text(max_size=80))
def test_any_text_is_a_ticket_or_refused(text: str) -> None:
    """Parsing never raises anything but TicketError."""
    try:
        assert Ticket.parse("shoal1-" + text)
    except TicketError as error:
        assert str(error)


@pytest.mark.parametrize("addresses", [(), ("tls://127.0.0.1:1",) * (MAX_ADDRESSES + 1), ("nonsense",)])
def test_what_a_ticket_may_not_name(addresses: tuple[str, ...]) -> None:
    """At least one address, no more than a record has, and each of a transport."""
    with pytest.raises(TicketError, match="damaged"):
        Ticket.parse(str(Ticket("ab" * 32, addresses)))


def test_a_text_beyond_the_limit_is_not_decoded() -> None:
    """The error shows its beginning only."""
    with pytest.raises(TicketError, match=f"at most {MAX_TICKET_CHARS}") as caught:
        Ticket.parse("shoal1-" + "A" * MAX_TICKET_CHARS)
    assert len(str(caught.value)) < 200
