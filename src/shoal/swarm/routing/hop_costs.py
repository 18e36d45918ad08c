"""What hops and links are expected to cost, from what servers tell and the client has measured."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from shoal.swarm.directory.records import ServerRecord
from shoal.swarm.routing.hop_graph import NANOSECOND, UNREACHABLE, Floats, HopGraph, Ints, Links, Mask
from shoal.types import PeerId

RoundTrips = Mapping[PeerId, float]
"""Seconds to a server and back, as this client has measured them."""

CLIENT = PeerId("client")
"""Stands for the client itself in `RouteOptions.broken_links`."""

DEFAULT_ROUND_TRIP_S = 0.1
"""From the client to a server that it has not measured."""
DEFAULT_BLOCK_ROWS_PER_S = 500.0
"""Through one block, where no server of the snapshot has measured itself."""
MAX_BLOCK_S = 1000.0
MAX_LINK_S = 60.0


def most_blocks(server: ServerRecord, num_tokens: int) -> int:
    """How many of its blocks a session of `num_tokens` may use."""
    if num_tokens <= 0:
        return len(server.span)
    return min(len(server.span), server.free_tokens * len(server.span) // num_tokens)


def hop_graph(
    servers: Sequence[ServerRecord],
    allowed: Mask,
    measured: RoundTrips,
    num_tokens: int = 0,
    broken_links: Iterable[tuple[str, str]] = (),
) -> HopGraph:
    """The graph over these servers (no peer twice), of which `allowed` [blocks, servers] says who may compute what."""
    lengths = np.array([len(server.span) for server in servers], np.float64)
    decode = _per_block([server.decode_rows_per_s for server in servers], lengths)
    prefill = _per_block([server.prefill_rows_per_s for server in servers], lengths)
    queued = np.array([max(server.queued_rows, 0) for server in servers], np.float64)
    return HopGraph(
        allowed,
        _cost(1 / decode, MAX_BLOCK_S),
        _cost(queued * lengths / prefill, MAX_BLOCK_S),
        prefill,
        np.array([most_blocks(server, num_tokens) for server in servers], np.int64),
        _links(servers, broken_links, measured),
    )


def _per_block(rates: Sequence[float], lengths: Floats) -> Floats:
    """Rows/s through one block, from those through a whole span; what is not measured is taken for the median."""
    rows = np.array([rate if math.isfinite(rate) and rate > 0 else 0.0 for rate in rates]) * lengths
    rows = np.where(rows > 0, np.clip(rows, 1 / MAX_BLOCK_S, 1e12), 0.0)
    known = rows[rows > 0]
    return np.where(rows > 0, rows, float(np.median(known)) if len(known) else DEFAULT_BLOCK_ROWS_PER_S)


def _cost(seconds: Floats, most: float) -> Ints:
    return np.rint(np.clip(seconds, 0, most) * 1e9).astype(np.int64) * NANOSECOND


def _seconds(value: float) -> float:
    return value if math.isfinite(value) and value >= 0 else DEFAULT_ROUND_TRIP_S


def _links(servers: Sequence[ServerRecord], broken_links: Iterable[tuple[str, str]], measured: RoundTrips) -> Links:
    index = {server.peer: at for at, server in enumerate(servers)}
    to_client = [_seconds(measured.get(PeerId(server.peer), DEFAULT_ROUND_TRIP_S)) for server in servers]
    near = _cost(np.array(to_client) / 4, MAX_LINK_S)
    first, last, shut = 2 * near, 2 * near, np.eye(len(servers), dtype=bool)
    for source, target in broken_links:
        if source == CLIENT and target in index:
            first[index[target]] = UNREACHABLE
        elif target == CLIENT and source in index:
            last[index[source]] = UNREACHABLE
        elif source in index and target in index:
            shut[index[source], index[target]] = True
    trips = _told(servers, index)
    pairs = np.array([pair for pair in sorted(trips) if not shut[pair]], np.int64).reshape(-1, 2)
    known = shut.copy()
    known[pairs[:, 0], pairs[:, 1]] = True
    costs = _cost(np.array([trips[a, b] for a, b in pairs.tolist()]) / 2, MAX_LINK_S)
    return Links(near, first, last, shut, known, (pairs[:, 0], pairs[:, 1], costs))


def _told(servers: Sequence[ServerRecord], index: Mapping[str, int]) -> dict[tuple[int, int], float]:
    """Round trips between servers in seconds: what the sender tells, else the receiver."""
    told = {
        (at, index[peer]): _seconds(seconds)
        for at, server in enumerate(servers)
        for peer, seconds in server.round_trips
        if peer in index and index[peer] != at
    }
    return {(b, a): seconds for (a, b), seconds in told.items()} | told
