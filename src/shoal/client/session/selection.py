"""Which servers a session asks for a span: a pure function of what is known of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import msgspec

from shoal.errors import NoRoute
from shoal.swarm.directory.records import ServerRecord
from shoal.swarm.routing.hop_costs import RoundTrips
from shoal.swarm.routing.route_options import RouteOptions
from shoal.swarm.routing.route_planner import plan_route
from shoal.transport.address import node_address, source_network
from shoal.types import Hop, Span


class Constraints(msgspec.Struct, frozen=True):
    """What servers of `span` must be like.

    `without`: servers not to take. `broken`: pairs of servers of which the first does not reach the second. `numerics`: the
    arithmetic that equals the session's; `exact`: no other will do. `num_tokens` must fit into their caches. `options` are
    the caller's. `bits`: those per weight that the session's blocks had, since equal weights have them.
    """

    span: Span
    without: frozenset[str] = frozenset()
    broken: frozenset[tuple[str, str]] = frozenset()
    numerics: str | None = None
    exact: bool = False
    num_tokens: int = 0
    options: RouteOptions = RouteOptions()
    bits: float | None = None


def select(records: Sequence[ServerRecord], measured: RoundTrips, constraints: Constraints) -> list[Hop]:
    """The best hops over a span. A wish that no route meets is given up; raises NoRoute when the last one finds none.

    Servers in `measured` have answered, and their records name the address where they did. The others are hearsay: a route has
    them where those that answered make none. Keys cost nothing, so that servers at the address of one that is not to be taken
    come after those elsewhere. What one says of where it is tells nothing of those that have answered there.
    """
    usable = [record for record in records if record.peer not in constraints.without]
    refused = [record for record in records if record.peer in constraints.without]
    said = {network for record in refused for network in _networks(record)}
    known = {network for record in refused if record.peer in measured for network in _networks(record)}
    elsewhere = [one for one in usable if not (known if one.peer in measured else said).intersection(_networks(one))]
    pools = [[record for record in pool if record.peer in measured] for pool in (elsewhere, usable)]
    pools = [*(pool for pool in pools if 0 < len(pool) < len(usable)), usable]
    error: NoRoute | None = None
    for arithmetic in _arithmetics(constraints):
        for pool in pools:
            for options in _wishes(constraints, arithmetic):
                try:
                    return list(plan_route(constraints.span, pool, options, measured))
                except NoRoute as caught:
                    error = caught
    assert error is not None
    raise error


def _networks(record: ServerRecord) -> set[str]:
    """Where a server has answered, or says that it is."""
    return {source_network(node_address(address).host) for address in record.addresses} - {""}


def _arithmetics(constraints: Constraints) -> Iterable[RouteOptions]:
    """Equal arithmetic first, alone if it must be; of either kind first that with as many bits in the weights."""
    kinds = (constraints.numerics,) if constraints.exact else (constraints.numerics, None)
    pairs = dict.fromkeys((numerics, bits) for numerics in kinds for bits in (constraints.bits, None))
    return [msgspec.structs.replace(constraints.options, numerics=one, same_bits=bits) for one, bits in pairs]


def _wishes(constraints: Constraints, asked: RouteOptions) -> Iterator[RouteOptions]:
    """Links that work first, then room as far as it is known."""
    tokens, none = constraints.num_tokens, frozenset[tuple[str, str]]()
    for broken in dict.fromkeys((constraints.broken, none)):
        yield msgspec.structs.replace(asked, broken_links=broken, num_tokens=tokens)
    yield msgspec.structs.replace(asked, num_tokens=0)
