"""Planned routes against the enumeration of all routes, on random small swarms."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Iterator

from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.errors import NoRoute
from shoal.swarm.directory.records import ServerRecord
from shoal.swarm.routing.hop_costs import CLIENT, RoundTrips
from shoal.swarm.routing.route_options import RouteOptions
from shoal.swarm.routing.route_planner import estimate_route, plan_route
from shoal.types import Hop, ModelSpec, PeerId, Route, Span

MODEL = ModelSpec("tiny", "f" * 32, 6, 48)
Cost = tuple[object, ...]


def a_swarm(rng: random.Random) -> tuple[Span, list[ServerRecord], RouteOptions, RoundTrips]:
    """Up to six servers of up to six blocks, whose few different numbers make for many ties."""
    num_blocks = rng.randint(1, 6)
    ids = rng.sample([f"{n:064x}" for n in range(9)], rng.randint(1, 6))
    servers = []
    for peer in ids:
        start = rng.randrange(num_blocks)
        known = rng.sample(ids, min(len(ids), rng.choice([0, 0, 1, 3])))
        servers.append(
            ServerRecord(
                peer=peer,
                sequence=1,
                issued_at=0.0,
                expires_at=1.0,
                addresses=(),
                model=MODEL,
                span=Span(start, rng.randint(start + 1, num_blocks)),
                numerics=rng.choice(["a", "a", "b"]),
                bits_per_weight=rng.choice([0.0, 4.0, 8.0, 32.0]),
                kl_nats=rng.choice([None, 0.0, 0.1]),
                decode_rows_per_s=rng.choice([0.0, 1.0, 5.0, 25.0]),
                prefill_rows_per_s=rng.choice([0.0, 10.0, 40.0]),
                free_tokens=rng.choice([100, 300, 1000]),
                queued_rows=rng.choice([0, 0, 2]),
                draining=rng.random() < 0.1,
                round_trips=tuple((other, rng.choice([0.0, 0.02, 0.3])) for other in known),
            )
        )
    parties = [*ids, CLIENT]
    start = rng.randrange(num_blocks)
    options = RouteOptions(
        goal=rng.choice(["latency", "throughput"]),
        num_tokens=rng.choice([0, 100, 150, 400]),
        pins={rng.randrange(num_blocks): PeerId(rng.choice(ids))} if rng.random() < 0.2 else {},
        deny=frozenset(rng.sample(ids, 1) if rng.random() < 0.1 else ()),
        allow=frozenset(rng.sample(ids, len(ids) // 2 + 1)) if rng.random() < 0.1 else None,
        min_bits=rng.choice([0.0, 0.0, 0.0, 8.0]),
        max_kl=rng.choice([None, None, None, 0.0, 0.1]),
        numerics=rng.choice([None, None, None, "a"]),
        same_bits=rng.choice([None, None, None, 8.0]),
        broken_links=frozenset((rng.choice(parties), rng.choice(parties)) for _ in range(rng.choice([0, 0, 3, 9]))),
    )
    measured = {PeerId(peer): rng.choice([0.02, 0.1, 0.4]) for peer in ids if rng.random() < 0.7}
    return Span(start, rng.randint(start + 1, num_blocks)), servers, options, measured


def median_of(rates: list[float]) -> float:
    """What a server without a rate is taken for."""
    known = sorted(rate for rate in rates if rate)
    middle = len(known) // 2
    return (known[middle] if len(known) % 2 else (known[middle - 1] + known[middle]) / 2) if known else 500.0


class Oracle:
    """The specification of `plan_route`, as slow and plain as possible."""

    def __init__(self, span: Span, servers: list[ServerRecord], options: RouteOptions, measured: RoundTrips) -> None:
        self.span, self.options, self.measured = span, options, measured
        self.servers = {
            server.peer: server
            for server in servers
            if not server.draining
            and server.peer not in options.deny
            and (options.allow is None or server.peer in options.allow)
            and server.bits_per_weight >= options.min_bits
            and (options.max_kl is None or (server.kl_nats is not None and server.kl_nats <= options.max_kl))
            and options.numerics in (None, server.numerics)
            and options.same_bits in (None, server.bits_per_weight)
            and (not options.num_tokens or self.most(server) > 0)
        }
        kept = self.servers.values()
        self.decode = median_of([server.decode_rows_per_s * len(server.span) for server in kept])
        self.prefill = median_of([server.prefill_rows_per_s * len(server.span) for server in kept])

    def most(self, server: ServerRecord) -> int:
        """The blocks of a server that the session's tokens have room in."""
        room = server.free_tokens * len(server.span) // self.options.num_tokens if self.options.num_tokens else 99
        return min(room, len(server.span))

    def half_trip(self, a: str, b: str) -> int:
        """Nanoseconds from one party to the next."""
        if CLIENT in (a, b):
            server = b if a == CLIENT else a
            return 2 * round(self.measured.get(PeerId(server), 0.1) / 4 * 1e9)
        for source, target in ((a, b), (b, a)):
            told = dict(self.servers[source].round_trips)
            if target in told:
                return round(told[target] / 2 * 1e9)
        return sum(round(self.measured.get(PeerId(peer), 0.1) / 4 * 1e9) for peer in (a, b))

    def routes(self) -> Iterator[tuple[str, ...]]:
        """All ways to give each block to a server that may compute it."""
        holders = [
            [
                peer
                for peer, server in self.servers.items()
                if block in server.span and self.options.pins.get(block, peer) == peer
            ]
            for block in self.span.blocks()
        ]
        return itertools.product(*holders)

    def cost(self, owners: tuple[str, ...]) -> tuple[Cost, Route] | None:
        """What makes a route better or worse than others; None for one that is not allowed."""
        hops: list[Hop] = []
        for block, peer in enumerate(owners, self.span.start):
            if hops and hops[-1].peer == peer:
                hops[-1] = Hop(PeerId(peer), Span(hops[-1].span.start, block + 1))
            else:
                hops.append(Hop(PeerId(peer), Span(block, block + 1)))
        parties = [CLIENT, *(hop.peer for hop in hops), CLIENT]
        links = list(itertools.pairwise(parties))
        used = Counter(owners)
        if any(link in self.options.broken_links for link in links):
            return None
        if any(count > self.most(self.servers[peer]) for peer, count in used.items()):
            return None
        time_ns = sum(self.half_trip(*link) for link in links)
        for hop in hops:
            server = self.servers[hop.peer]
            decode = server.decode_rows_per_s * len(server.span) or self.decode
            prefill = server.prefill_rows_per_s * len(server.span) or self.prefill
            time_ns += round(1e9 / decode) * len(hop.span) + round(
                1e9 * server.queued_rows * len(server.span) / prefill
            )
        rows = min(self.rows(peer) / count for peer, count in used.items())
        order = (time_ns, len(hops), *((hop.peer, -hop.span.stop) for hop in hops))
        return (order if self.options.goal == "latency" else (-rows, *order)), tuple(hops)

    def rows(self, peer: str) -> float:
        """Bulk rows/s through one block of a server."""
        server = self.servers[peer]
        return server.prefill_rows_per_s * len(server.span) or self.prefill

    def best(self) -> Route | None:
        """The best of all routes."""
        costs = [cost for owners in self.routes() if (cost := self.cost(owners)) is not None]
        return min(costs)[1] if costs else None


@settings(max_examples=1000, deadline=None)
@given(st.integers(0, 2**40))
def test_the_planned_route_is_the_best_of_all(seed: int) -> None:
    """Equal to brute force, ties included, for both goals and all options; no route exactly where there is none."""
    span, servers, options, measured = a_swarm(random.Random(seed))
    oracle = Oracle(span, servers, options, measured)
    best = oracle.best()
    try:
        route = plan_route(span, servers, options, measured)
    except NoRoute as error:
        assert best is None
        unserved = [block for start, stop in error.missing for block in range(start, stop)]
        assert unserved == [
            block
            for block in span.blocks()
            if not any(
                block in server.span and options.pins.get(block, peer) == peer
                for peer, server in oracle.servers.items()
            )
        ]
        return
    assert route == best


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**40))
def test_routes_do_not_depend_on_the_order_of_the_records(seed: int) -> None:
    """The same snapshot gives the same route, however it is listed."""
    rng = random.Random(seed)
    span, servers, options, measured = a_swarm(rng)
    try:
        route = plan_route(span, servers, options, measured)
    except NoRoute:
        return
    assert plan_route(span, rng.sample(servers, len(servers)), options, measured) == route


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**40))
def test_estimates_are_what_planning_minimises(seed: int) -> None:
    """A route's estimate is the time and the rate that the search compared."""
    span, servers, _, measured = a_swarm(random.Random(seed))
    servers = [
        record for record in servers if not record.draining and record.decode_rows_per_s and record.prefill_rows_per_s
    ]
    oracle = Oracle(span, servers, RouteOptions(), measured)
    best = oracle.best()
    if best is not None:
        found = oracle.cost(tuple(hop.peer for hop in best for _ in hop.span.blocks()))
        assert found is not None
        estimate = estimate_route(best, servers, measured)
        assert round(estimate.token_s * 1e9) == found[0][0]
        assert estimate.rows_per_s == min(
            oracle.rows(peer) / count
            for peer, count in Counter(hop.peer for hop in best for _ in hop.span.blocks()).items()
        )
