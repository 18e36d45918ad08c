"""Which servers a session asks for its blocks, and in which order wishes are given up."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from shoal.client.session import selection
from shoal.client.session.selection import Constraints, select
from shoal.errors import NoRoute
from shoal.swarm.directory.records import ServerRecord
from shoal.swarm.routing.route_options import RouteOptions
from shoal.types import Hop, ModelSpec, PeerId, Route, Span
from tests.records import FINGERPRINT

MODEL = ModelSpec("tiny", FINGERPRINT, 12, 48)
ALL, FIRST, SECOND = Span(0, 12), Span(0, 6), Span(6, 12)
A, B, C = (PeerId(letter * 64) for letter in "abc")


def server(peer: PeerId, span: Span = ALL, **fields: Any) -> ServerRecord:
    """A server with room."""
    fields = {"free_tokens": 1000, "numerics": "torch", "addresses": ("tls://127.0.0.1:1",), **fields}
    return ServerRecord(peer, 1, 0.0, 300.0, model=MODEL, span=span, **fields)


def chosen(servers: Iterable[ServerRecord], **fields: Any) -> list[Hop]:
    """What is selected of these servers for all blocks."""
    return select(list(servers), {}, Constraints(**{"span": ALL, "num_tokens": 100, **fields}))


def test_several_servers_cover_a_span_together() -> None:
    """Hop after hop."""
    assert chosen([server(A, FIRST), server(B, SECOND)]) == [Hop(A, FIRST), Hop(B, SECOND)]


def test_who_is_not_to_be_taken() -> None:
    """Is not, even if nothing is left then."""
    assert chosen([server(A), server(B)], without=frozenset({A})) == [Hop(B, ALL)]
    with pytest.raises(NoRoute, match="0:12"):
        chosen([server(A)], without=frozenset({A}))


def test_equal_arithmetic_comes_first() -> None:
    """Others are taken where no other is left, unless the session must be exact."""
    servers = [server(A, numerics="other"), server(B)]
    assert chosen(servers, numerics="torch") == [Hop(B, ALL)]
    assert chosen(servers[:1], numerics="torch") == [Hop(A, ALL)]
    with pytest.raises(NoRoute, match="numerics"):
        chosen(servers[:1], numerics="torch", exact=True)


def test_as_many_bits_come_first_of_equal_arithmetic() -> None:
    """A hop of 8 bits is replaced by one of 8 bits, however fast others are; where none is left, by any."""
    few = server(A, bits_per_weight=4.25, decode_rows_per_s=1e9)
    as_many, other = server(B, bits_per_weight=8.2), server(C, bits_per_weight=8.25, numerics="other")
    assert chosen([few, as_many, other], numerics="torch", bits=8.25) == [Hop(B, ALL)]
    assert chosen([few, other], numerics="torch", bits=8.25) == [Hop(A, ALL)]
    assert chosen([few, other], numerics="else", bits=8.25) == [Hop(C, ALL)]
    assert chosen([few], numerics="torch", bits=8.25, exact=True) == [
        Hop(A, ALL)
    ]  # its weights are looked at when it opens


def test_broken_links_are_avoided_while_there_are_others() -> None:
    """Two that do not reach each other are taken before none: the client carries their rows."""
    servers = [server(A, FIRST), server(B, SECOND), server(C, SECOND)]
    broken = frozenset({(A, B)})
    assert chosen(servers, broken=broken) == [Hop(A, FIRST), Hop(C, SECOND)]
    assert chosen(servers[:2], broken=broken) == [Hop(A, FIRST), Hop(B, SECOND)]


def test_a_server_that_seems_full_is_asked_last() -> None:
    """Its record may be old."""
    servers = [server(A, free_tokens=10), server(B)]
    assert chosen(servers) == [Hop(B, ALL)]
    assert chosen(servers[:1]) == [Hop(A, ALL)]


def test_who_has_answered_comes_before_hearsay() -> None:
    """A record that promises everything is no server; without another it is tried."""
    promising = server(B, decode_rows_per_s=1e9)
    measured = {A: 0.2}
    constraints = Constraints(ALL, num_tokens=100)
    assert select([server(A), promising], measured, constraints) == [Hop(A, ALL)]
    assert select([server(A, free_tokens=1), promising], measured, constraints) == [Hop(A, ALL)]
    assert select([server(A, FIRST), promising], measured, constraints) == [Hop(B, ALL)]
    other = Constraints(ALL, num_tokens=100, numerics="else")
    assert select([server(A), server(B, numerics="else")], measured, other) == [Hop(B, ALL)]


@pytest.mark.parametrize("known", [(A, B, C), (A,), ()])
def test_neighbours_of_a_server_that_is_not_to_be_taken_come_later(known: tuple[PeerId, ...]) -> None:
    """Keys cost nothing: what one address has refused is not tried with every key of it."""
    crowd = [server(peer, addresses=("iroh://127.0.0.2:9",), decode_rows_per_s=1e9) for peer in (A, B)]
    honest = server(C, addresses=("tls://127.0.0.3:9",))
    measured = dict.fromkeys(known, 0.1)
    without = Constraints(ALL, frozenset({A}))
    assert select([*crowd, honest], dict.fromkeys((A, B, C), 0.1), without) == [Hop(C, ALL)]
    assert select(crowd, measured, without) == [Hop(B, ALL)]


def test_a_server_that_names_the_address_of_others() -> None:
    """One that is not to be taken does no harm to those that have answered where it only says that it is."""
    liar = server(A, addresses=("tls://127.0.0.2:9", "tls://127.0.0.3:9"))
    other = server(B, addresses=("tls://127.0.0.4:9",), decode_rows_per_s=1.0)
    honest = server(C, addresses=("tls://127.0.0.3:9",), decode_rows_per_s=1e9)
    without = Constraints(ALL, frozenset({A}))
    assert select([liar, other, honest], dict.fromkeys((B, C), 0.1), without) == [Hop(C, ALL)]
    assert select([liar, other, honest], {B: 0.1}, without) == [Hop(B, ALL)]


def test_what_the_caller_asks_is_never_given_up() -> None:
    """Servers that are denied stay denied, and floors stay."""
    with pytest.raises(NoRoute, match="deny"):
        chosen([server(A)], options=RouteOptions(deny=frozenset({A})))
    for floor in ({"min_bits": 8.0}, {"max_kl": 0.1}):
        with pytest.raises(NoRoute, match=next(iter(floor))):
            chosen([server(A, bits_per_weight=4.0, kl_nats=0.2)], options=RouteOptions(**floor), bits=4.0)


@pytest.mark.parametrize("exact", [False, True])
def test_the_order_of_wishes(exact: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal arithmetic is the last to go; before it links that work, then room as far as it is known."""
    asked: list[RouteOptions] = []

    def refuse(span: Span, records: object, options: RouteOptions, measured: object) -> Route:
        asked.append(options)
        raise NoRoute("none")

    monkeypatch.setattr(selection, "plan_route", refuse)
    broken, none = frozenset({(A, B)}), frozenset[tuple[str, str]]()
    with pytest.raises(NoRoute):
        chosen([], numerics="key", broken=broken, exact=exact)
    equal = [("key", broken, 100), ("key", none, 100), ("key", none, 0)]
    others = [(None, broken, 100), (None, none, 100), (None, none, 0)]
    wishes = [(one.numerics, one.broken_links, one.num_tokens) for one in asked]
    assert wishes == (equal if exact else equal + others)
