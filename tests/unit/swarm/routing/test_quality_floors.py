"""Floors under what servers say of their weights."""

from __future__ import annotations

import pytest

from shoal.swarm.routing.quality_floors import FLOORS, MAX_NAMED
from shoal.swarm.routing.route_options import RouteOptions
from shoal.types import PeerId
from tests.unit.swarm.routing.test_route_planner import server

BITS, KL = FLOORS
ANY = PeerId("a" * 64)


@pytest.mark.parametrize(
    ("options", "words", "met"),
    [
        ({}, {}, True),
        ({"min_bits": 4.25}, {"bits_per_weight": 4.25}, True),
        ({"min_bits": 4.26}, {"bits_per_weight": 4.25}, False),
        ({"min_bits": 1}, {}, False),
        ({"max_kl": 0.1}, {"kl_nats": 0.1}, True),
        ({"max_kl": 0.1}, {"kl_nats": 0.11}, False),
        ({"max_kl": 0.0}, {"kl_nats": 0.0}, True),
        ({"max_kl": 1000.0}, {}, False),
    ],
)
def test_who_meets_a_floor(options: dict[str, float], words: dict[str, float], met: bool) -> None:
    """The bound itself is enough, and who says nothing meets no demand, however small it is."""
    asked, one = RouteOptions(**options), server(ANY, 0, 8, **words)
    assert all(floor.meets(one, asked) for floor in FLOORS) == met
    assert bool(BITS.told([one], asked) or KL.told([one], asked)) != met


def test_a_crowd_is_cut() -> None:
    """An error names a few, and says how many more there are."""
    crowd = [server(PeerId(f"{n:064x}"), 0, 8, name=f"n{n:02}", bits_per_weight=3.0) for n in range(MAX_NAMED + 5)]
    told = BITS.told(crowd, RouteOptions(min_bits=4))
    assert told.startswith("min_bits demands 4 bits per weight: n00 says 3, n01 says 3")
    assert told.endswith("n07 says 3, and 5 more")
