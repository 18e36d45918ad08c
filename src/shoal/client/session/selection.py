"""Which servers a session asks for a span: a pure function of what is known of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from shoal.errors import NoRoute
from shoal.swarm.directory.records import ServerRecord
from shoal.swarm.routing.hop_costs import RoundTrips
from shoal.swarm.routing.route_options import RouteOptions
from shoal.swarm.routing.route_planner import plan_route
from shoal.types import Hop, Span


class Constraints(msgspec.Struct, frozen=True):
    """What servers of `span` must be like.

    `without`: servers not to take. `broken`: pairs of servers of which the first does not reach the second. `numerics`: the
    arithmetic that equals the session's; `exact`: no other will do. `num_tokens` must fit into their caches. `options` are
    the caller's.
    """

    span: Span
    without: frozenset[str] = frozenset()
    broken: frozenset[tuple[str, str]] = frozenset()
    numerics: str | None = None
    exact: bool = False
    num_tokens: int = 0
    options: RouteOptions = RouteOptions()


def select(records: Sequence[ServerRecord], measured: RoundTrips, constraints: Constraints) -> list[Hop]:
    """The best hops over a span. A wish that no route meets is given up; raises NoRoute when the last one finds none."""
    usable = [record for record in records if record.peer not in constraints.without]
    error: NoRoute | None = None
    for options in _wishes(constraints):
        try:
            return list(plan_route(constraints.span, usable, options, measured))
        except NoRoute as caught:
            error = caught
    assert error is not None
    raise error


def _wishes(constraints: Constraints) -> Iterator[RouteOptions]:
    """Equal arithmetic first (alone, if it must be), then links that work, then room as far as it is known."""
    asked, tokens, none = constraints.options, constraints.num_tokens, frozenset[tuple[str, str]]()
    for numerics in dict.fromkeys((constraints.numerics,) if constraints.exact else (constraints.numerics, None)):
        for broken in dict.fromkeys((constraints.broken, none)):
            yield msgspec.structs.replace(asked, numerics=numerics, broken_links=broken, num_tokens=tokens)
        yield msgspec.structs.replace(asked, numerics=numerics, num_tokens=0)
