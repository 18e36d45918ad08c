"""Routes as a pure function of a snapshot: records, what the client measured, and what it asks for."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence

import msgspec
import numpy as np

from shoal.errors import FingerprintMismatch, NoRoute
from shoal.swarm.directory.records import ServerRecord
from shoal.swarm.routing.hop_costs import RoundTrips, hop_graph, most_blocks
from shoal.swarm.routing.hop_graph import NANOSECOND, Mask, Parts
from shoal.swarm.routing.quality_floors import FLOORS
from shoal.swarm.routing.route_options import RouteOptions
from shoal.types import Hop, PeerId, Route, Span, missing_spans


class RouteEstimate(msgspec.Struct, frozen=True):
    """What a route is expected to do: seconds per generated token, and rows/s of bulk work."""

    token_s: float
    rows_per_s: float


NO_OPTIONS = RouteOptions()

SAME_BITS = 0.05
"""The share by which bits per weight may differ of servers that may hold equal weights."""

MAX_LISTED = 8
"""Checkpoints of one name that an error lists."""


def plan_route(
    span: Span,
    records: Iterable[ServerRecord],
    options: RouteOptions = NO_OPTIONS,
    measured: RoundTrips | None = None,
) -> Route:
    """The best route over the blocks of `span`, of the servers in `records` (one model's).

    A token's time is half the round trips client → first hop → … → last hop → client, each hop's queue at its prefill
    rate, and its blocks at its decode rate. A round trip between servers is the one that the sender's record tells, else
    the receiver's, else the mean of the two servers' round trips to the client. A server without a measured rate counts
    as the median of those that have one. Free cache and rates are per whole span: a part of a span takes its share, and
    a server may serve several parts as long as they fit together. Draining servers are left out.

    Ties go to fewer hops, then, hop by hop, to the lower node id and the longer hop. Raises NoRoute, with the blocks in
    `missing` and the options that excluded their servers in the message: of floors also what these servers have.
    """
    servers = sorted({record.peer: record for record in records}.values(), key=lambda server: server.peer)
    excluded = [_excluded(server, options) for server in servers]
    usable = [server for server, reason in zip(servers, excluded, strict=True) if reason is None]
    pins = _pins_by_block(span, options)
    allowed = _allowed(span, usable, pins)
    if not allowed.any(axis=1).all():
        raise _missing(span, servers, options, excluded, np.flatnonzero(~allowed.any(axis=1)) + span.start)
    graph = hop_graph(usable, allowed, measured or {}, options.num_tokens, options.broken_links)
    parts = graph.cheapest() if options.goal == "latency" else graph.widest()
    if parts is None:
        used = [name for name in ("num_tokens", "broken_links", "pins") if getattr(options, name)]
        raise NoRoute(f"every block of {span} has a server, but no route connects them within {', '.join(used)}")
    return _as_route(span, usable, parts)


def estimate_route(route: Route, records: Iterable[ServerRecord], measured: RoundTrips | None = None) -> RouteEstimate:
    """What `plan_route` expects of a route over these records; raises NoRoute if one of its servers is not among them."""
    by_peer = {record.peer: record for record in records}
    absent = [hop for hop in route if hop.peer not in by_peer]
    if absent:
        raise NoRoute(f"{absent[0].peer[:8]} is not in the snapshot", ((absent[0].span.start, absent[0].span.stop),))
    servers = sorted({hop.peer: by_peer[hop.peer] for hop in route}.values(), key=lambda server: server.peer)
    index = {server.peer: at for at, server in enumerate(servers)}
    whole = Span(route[0].span.start, route[-1].span.stop)
    graph = hop_graph(servers, _allowed(whole, servers, {}), measured or {})
    hops = [index[hop.peer] for hop in route]
    cost = int(graph.links.first[hops[0]]) + int(graph.links.last[hops[-1]])
    cost += sum(int(graph.links.row(a)[b]) for a, b in itertools.pairwise(hops))
    cost += sum(
        int(graph.enter[at]) + len(hop.span) * int(graph.block[at]) for at, hop in zip(hops, route, strict=True)
    )
    used = np.zeros(len(servers))
    np.add.at(used, hops, [len(hop.span) for hop in route])
    return RouteEstimate(cost / NANOSECOND / 1e9, float((graph.rows / used).min()))


def _excluded(server: ServerRecord, options: RouteOptions) -> str | None:
    """The first reason why this server is not used at all."""
    reasons = {
        "draining": server.draining,
        "deny": server.peer in options.deny,
        "allow": options.allow is not None and server.peer not in options.allow,
        **{floor.option: not floor.meets(server, options) for floor in FLOORS},
        "numerics": options.numerics is not None and server.numerics != options.numerics,
        "same_bits": options.same_bits is not None and not _near(server.bits_per_weight, options.same_bits),
        "num_tokens": most_blocks(server, options.num_tokens) <= 0,
    }
    return next((name for name, holds in reasons.items() if holds), None)


def _near(bits: float, wanted: float) -> bool:
    """Whether weights may be equal: spans of a model whose layers differ have a little more or less on average."""
    return abs(bits - wanted) <= SAME_BITS * wanted


def _pins_by_block(span: Span, options: RouteOptions) -> dict[int, PeerId]:
    pins: dict[int, PeerId] = {}
    for where, peer in options.pins.items():
        blocks = where.blocks() if isinstance(where, Span) else (where,)
        pins.update({block: peer for block in blocks if block in span})
    return pins


def _allowed(span: Span, servers: Sequence[ServerRecord], pins: Mapping[int, PeerId]) -> Mask:
    """[blocks of `span`, servers]: who holds what, and is not kept from it by a pin."""
    blocks = np.arange(span.start, span.stop)[:, None]
    starts = np.array([server.span.start for server in servers], np.int64)
    stops = np.array([server.span.stop for server in servers], np.int64)
    allowed: Mask = (starts <= blocks) & (blocks < stops)
    for block, peer in pins.items():
        allowed[block - span.start] &= np.array([server.peer == peer for server in servers], bool)
    return allowed


def _missing(
    span: Span,
    servers: Sequence[ServerRecord],
    options: RouteOptions,
    excluded: Sequence[str | None],
    blocks: Iterable[int],
) -> NoRoute:
    """The error that says which blocks have nobody, and which options took away those that they had."""
    nobody: list[int] = []
    reasons: dict[int, tuple[str, ...]] = {}
    for block in blocks:
        why = {reason or "pins" for server, reason in zip(servers, excluded, strict=True) if block in server.span}
        if why:
            reasons[int(block)] = tuple(sorted(why))
        else:
            nobody.append(int(block))
    said = []
    if nobody:
        said.append(f"no server holds blocks {_listed(nobody)}")
    for names in sorted(set(reasons.values())):
        held = [block for block, named in reasons.items() if named == names]
        said.append(f"blocks {_listed(held)} are only on servers that are excluded by {', '.join(names)}")
    there = [
        server
        for server, reason in zip(servers, excluded, strict=True)
        if reason != "draining" and any(block in server.span for block in reasons)
    ]
    said += filter(None, (floor.told(there, options) for floor in FLOORS))
    missing = _spans(sorted([*nobody, *reasons]))
    return NoRoute("; ".join(said), tuple((part.start, part.stop) for part in missing))


def _spans(blocks: Sequence[int]) -> tuple[Span, ...]:
    """Sorted blocks as spans."""
    gaps = [Span(a + 1, b) for a, b in itertools.pairwise(blocks) if b > a + 1]
    return missing_spans(Span(blocks[0], blocks[-1] + 1), gaps)


def _listed(blocks: Sequence[int]) -> str:
    return ", ".join(map(str, _spans(blocks)))


def _as_route(span: Span, servers: Sequence[ServerRecord], parts: Parts) -> Route:
    return tuple(
        Hop(PeerId(servers[server].peer), Span(span.start + start, span.start + stop)) for server, start, stop in parts
    )


def same_model(
    records: Iterable[ServerRecord],
    name: str | None = None,
    fingerprint: str | None = None,
    vouchers: Collection[str] = frozenset(),
) -> list[ServerRecord]:
    """The records of one model, chosen by fingerprint, by name, or as the only one there is.

    What servers in `vouchers` say of it decides; what the others say counts where none of these has a record of it. Raises
    NoRoute when nobody serves it, FingerprintMismatch when servers hold other checkpoints under the name, or several that
    cannot be told apart.
    """
    everything = list(records)
    named = [server for server in everything if name is None or server.model.name == name]
    if fingerprint is not None:
        chosen = [server for server in everything if server.model.fingerprint == fingerprint]
        if not chosen and named and name is not None:
            raise FingerprintMismatch(_differ(named, f"this side's {name} is {fingerprint}"))
        named = chosen
    if not named:
        names = ", ".join(sorted({server.model.name for server in everything})) or "nothing"
        raise NoRoute(f"no server of the swarm serves {name or 'this checkpoint'} (it serves: {names})")
    deciding = [server for server in named if server.peer in vouchers] or named
    if len({server.model.checkpoint for server in deciding}) > 1:
        raise FingerprintMismatch(_differ(deciding, "give the checkpoint that you mean"))
    return [server for server in named if server.model.checkpoint == deciding[0].model.checkpoint]


def _differ(servers: list[ServerRecord], ending: str) -> str:
    held = {server.model.checkpoint: server for server in servers}
    listed = "; ".join(
        f"{one.name or one.peer[:8]} has {one.model.name} as {one.model.fingerprint} of {one.model.num_blocks} blocks"
        for _, one in sorted(held.items())[:MAX_LISTED]
    )
    return f"different checkpoints ({listed}): {ending}"
