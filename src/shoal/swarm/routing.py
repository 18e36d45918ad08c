"""Routes as a pure function of a snapshot of records."""

from __future__ import annotations

from collections.abc import Iterable

from shoal.errors import FingerprintMismatch, NoRoute
from shoal.swarm.records import ServerRecord
from shoal.types import Hop, PeerId, Route, Span, missing_spans


def shortest_route(num_blocks: int, records: Iterable[ServerRecord]) -> Route:
    """The route with the fewest hops over all blocks of the model.

    Each hop goes as far as any server can; among equals the shorter queue, then the lower node id, wins. Raises NoRoute
    naming the blocks that nobody serves.
    """
    servers = list(records)
    missing = missing_spans(num_blocks, (server.span for server in servers))
    if missing:
        raise NoRoute(
            f"no server holds blocks {', '.join(map(str, missing))} of 0:{num_blocks}",
            tuple((span.start, span.stop) for span in missing),
        )
    route: list[Hop] = []
    at = 0
    while at < num_blocks:
        best = min(
            (server for server in servers if at in server.span),
            key=lambda server: (-server.span.stop, server.queued_rows, server.peer),
        )
        route.append(Hop(PeerId(best.peer), Span(at, best.span.stop)))
        at = best.span.stop
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
