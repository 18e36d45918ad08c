"""What routes through a simulated swarm are like."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from shoal.swarm.routing.route_planner import estimate_route, plan_route
from shoal.types import Span
from simulator.sim_server import SimServer

ROUTE_CLIENTS = 3


def probe_routes(
    rng: random.Random, num_blocks: int, servers: Sequence[SimServer], now: float
) -> list[tuple[float, int]]:
    """(seconds a token, hops) for clients at random places who plan a route through all blocks: estimates like theirs."""
    records = [server.record(num_blocks, now) for server in servers]
    found = []
    for _ in range(ROUTE_CLIENTS):
        place = np.array([rng.random(), rng.random()])
        trips = {server.peer: 0.01 + 0.15 * float(np.linalg.norm(place - server.power.place)) for server in servers}
        route = plan_route(Span(0, num_blocks), records, measured=trips)
        found.append((estimate_route(route, records, trips).token_s, len(route)))
    return found
