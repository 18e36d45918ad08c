"""Routes over arrays of costs; tests/property/test_routing.py compares them with all that there are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from shoal.swarm.routing import hop_graph as module
from shoal.swarm.routing.hop_graph import UNREACHABLE, HopGraph, Links


def links(count: int, near: int = 10) -> Links:
    """Each of `count` servers as far from the client as from one another; none sends to itself."""
    to_client, own = np.full(count, 2 * near), np.eye(count, dtype=bool)
    nothing = np.zeros(0, np.int64)
    return Links(np.full(count, near), to_client, to_client.copy(), own, own.copy(), (nothing, nothing, nothing))


def graph(allowed: str, block: list[int], most: list[int] | None = None) -> HopGraph:
    """One word for each server: x where it has a block. `block` costs are per block."""
    table = np.array([[letter == "x" for letter in word] for word in allowed.split()]).T
    count = len(block)
    return HopGraph(
        table,
        np.array(block),
        np.zeros(count, np.int64),
        1000.0 / np.array(block),
        np.array(most or [len(table)] * count),
        links(count),
    )


def test_hops_cost_what_they_save_or_not() -> None:
    """A faster server for a part is worth its links only where it saves more than they cost."""
    assert graph("xxxx ..xx", [20, 15]).cheapest() == ((0, 0, 4),)
    assert graph("xxxx ..xx", [20, 5]).cheapest() == ((0, 0, 2), (1, 2, 4))


def test_of_equals_the_longer_hop_of_the_first_server() -> None:
    """The route is the same whatever the order of additions was."""
    assert graph("xxx. .xxx x...", [1, 1, 1]).cheapest() == ((0, 0, 3), (1, 3, 4))
    assert graph("xxxx xxxx", [1, 1]).cheapest() == ((0, 0, 4),)


def test_of_equals_the_route_of_fewer_hops() -> None:
    """Also where links cost nothing and a longer route begins with an earlier server."""
    free = replace(graph("xx.. ..xx xxxx", [1, 1, 1]), links=links(3, near=0))
    assert free.cheapest() == ((2, 0, 4),)


def test_a_block_without_a_server() -> None:
    """There is no route, for either goal."""
    gap = graph("x..x xx.x", [1, 1])
    assert gap.cheapest() is None
    assert gap.widest() is None


def test_a_server_is_not_used_beyond_its_room() -> None:
    """Also where its parts are apart and each alone would fit."""
    split = graph("xx.xx ..x.. xxxxx", [1, 1, 100], most=[2, 5, 5])
    parts = split.cheapest()
    assert parts is not None
    assert sum(stop - start for server, start, stop in parts if server == 0) == 2
    assert replace(split, most=np.array([4, 5, 5])).cheapest() == ((0, 0, 2), (1, 2, 3), (0, 3, 5))
    assert graph("xx.xx ..x..", [1, 1], most=[2, 5]).cheapest() is None


@pytest.mark.parametrize("exact_cells", [0, module.EXACT_CELLS])
def test_large_swarms_get_a_route_within_the_rooms_too(exact_cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the window of each server that is its longest part, where exact sharing would take too many searches."""
    monkeypatch.setattr(module, "EXACT_CELLS", exact_cells)
    split = graph("xx.xx ..x.. xxxxx", [1, 1, 100], most=[2, 5, 5])
    for parts in (split.cheapest(), split.widest()):
        assert parts is not None
        assert [start for _, start, _ in parts] == [0, *(stop for _, _, stop in parts[:-1])]
        assert sum(stop - start for server, start, stop in parts if server == 0) <= 2


def test_the_widest_route_shares_blocks_by_speed() -> None:
    """300 and 100 rows/s through a block: three of four blocks for the faster one, so that both keep up with 100."""
    shared = graph("xxxx xxxx", [1, 1])
    shared = replace(shared, rows=np.array([300.0, 100.0]))
    parts = shared.widest()
    assert parts is not None
    assert {server: stop - start for server, start, stop in parts} == {0: 3, 1: 1}
    assert shared.at_least(100.0).most.tolist() == [3, 1]
    assert shared.at_least(301.0).most.tolist() == [0, 0]


def test_a_link_that_is_shut_is_gone_around() -> None:
    """By a third server, or there is no route."""
    pair = graph("xx.. ..xx .xx.", [1, 1, 1])
    shut = pair.links.shut.copy()
    shut[0, 1] = True
    closed = replace(pair, links=replace(pair.links, shut=shut, known=shut.copy()))
    assert [server for server, _, _ in closed.cheapest() or ()] == [0, 2, 1]
    assert [server for server, _, _ in closed.widest() or ()] == [0, 2, 1]
    shut[0, 2] = True
    apart = replace(pair, links=replace(pair.links, shut=shut, known=shut.copy()))
    assert apart.cheapest() is None


def test_onwards_is_the_least_over_all_rows() -> None:
    """For any measured links and any costs: what `row` and `enter` give one by one. Many servers exclude the best few."""
    rng = np.random.default_rng(7)
    count = 3 * module.NEAREST
    plain = links(count)
    shut = rng.random((count, count)) < 0.5
    np.fill_diagonal(shut, True)
    pairs = np.argwhere(~shut & (rng.random((count, count)) < 0.3))
    known = shut.copy()
    known[pairs[:, 0], pairs[:, 1]] = True
    costs = rng.integers(1, 50, len(pairs))
    near = rng.integers(1, 50, count)
    some = replace(plain, near=near, shut=shut, known=known, measured=(pairs[:, 0], pairs[:, 1], costs))
    for _ in range(20):
        enter = np.where(rng.random(count) < 0.3, UNREACHABLE, rng.integers(0, 1000, count))
        expected = [min(UNREACHABLE, int((some.row(source) + enter).min())) for source in range(count)]
        assert some.onwards(enter).tolist() == expected
