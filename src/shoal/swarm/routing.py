"""Routes as a pure function of a snapshot of records."""

from __future__ import annotations

from collections.abc import Iterable

from shoal.errors import FingerprintMismatch, NoRoute
from shoal.swarm.records import ServerRecord
from shoal.types import Hop, PeerId, Route, Span, missing_spans


def shortest_route(span: Span, records: Iterable[ServerRecord]) -> Route:
    """The route with the fewest hops over the blocks of `span`.

    Each hop goes as far as any server can; among equals the shorter queue, then the lower node id, wins. Raises NoRoute
    naming the blocks that nobody serves.
    """
    servers = list(records)
    missing = missing_spans(span, (server.span for server in servers))
    if missing:
        raise NoRoute(
            f"no server holds blocks {', '.join(map(str, missing))}",
            tuple((part.start, part.stop) for part in missing),
        )
    route: list[Hop] = []
    at = span.start
    while at < span.stop:
        best = min(
            (server for server in servers if at in server.span),
            key=lambda server: (-min(server.span.stop, span.stop), server.queued_rows, server.peer),
        )
        stop = min(best.span.stop, span.stop)
        route.append(Hop(PeerId(best.peer), Span(at, stop)))
        at = stop
    return tuple(route)


def same_model(
    records: Iterable[ServerRecord], name: str | None = None, fingerprint: str | None = None
) -> list[ServerRecord]:
    """The records of one model, chosen by fingerprint, by name, or as the only one there is.

    Raises NoRoute when nobody serves it, FingerprintMismatch when servers hold other checkpoints under the name, or
    several that cannot be told apart.
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
    if len({server.model.fingerprint for server in named}) > 1:
        raise FingerprintMismatch(_differ(named, "give the checkpoint that you mean"))
    return named


def _differ(servers: list[ServerRecord], ending: str) -> str:
    held = {server.model.fingerprint: server for server in servers}
    listed = "; ".join(f"{s.name or s.peer[:8]} has {s.model.name} as {print_}" for print_, s in sorted(held.items()))
    return f"different checkpoints ({listed}): {ending}"
