"""Plans of several moves, the best single move, and where a joining server goes."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from shoal.swarm.directory.records import MAX_PLANNED
from shoal.swarm.placement.local_search import best_move, choose_span, plan_moves
from shoal.swarm.placement.swarm_load import ServerLoad, SwarmLoad
from shoal.types import PeerId, Span
from tests.loads import a_load, moving, some_loads

NUM_BLOCKS = 12


def carried_out(loads: list[ServerLoad], moves: dict[PeerId, Span]) -> SwarmLoad:
    """The swarm after all moves."""
    goals = [msgspec.structs.replace(one, goal=moves.get(one.peer, one.goal), serves=one.goal) for one in loads]
    return SwarmLoad(NUM_BLOCKS, goals)


def test_a_joining_server_takes_the_weakest_blocks() -> None:
    """First what no server holds, then where it helps most; the first among equals; at least as many as were asked for."""
    held = [a_load("a", 0, 4)]
    assert choose_span(SwarmLoad(12), 4) == Span(0, 4)
    assert choose_span(SwarmLoad(12, held), 4) == Span(4, 8)
    assert choose_span(SwarmLoad(12, [*held, a_load("b", 4, 8)]), 4) == Span(8, 12)
    assert choose_span(SwarmLoad(6, [a_load("a", 0, 2), a_load("b", 3, 6)]), 2, fewest=2).start == 2
    weak = [a_load("a", 0, 6), a_load("b", 0, 6), a_load("c", 6, 12, block_rows_per_s=6.0)]
    assert choose_span(SwarmLoad(12, weak), 6) == Span(6, 12)
    assert len(choose_span(SwarmLoad(12, weak), 20, fewest=12)) == 12
    crowd = [one for one in some_loads(NUM_BLOCKS, 30, seed=1) if one.goal.stop < NUM_BLOCKS]
    assert choose_span(SwarmLoad(NUM_BLOCKS, crowd), 4).stop == NUM_BLOCKS


def test_a_plan_is_a_gain_and_bounded() -> None:
    """The weakest block becomes stronger by at most MAX_PLANNED moves, and the same plan comes of the same servers."""
    loads = some_loads(NUM_BLOCKS, 20, seed=0)
    moves = plan_moves(SwarmLoad(NUM_BLOCKS, loads))
    assert 0 < len(moves) <= MAX_PLANNED
    assert moves == plan_moves(SwarmLoad(NUM_BLOCKS, reversed(loads)))
    after = carried_out(loads, moves)
    assert after.blocks.throughput.min() > SwarmLoad(NUM_BLOCKS, loads).blocks.throughput.min()
    assert after.gain(after.servers.values()) > 1
    assert all(len(span) <= 4 for span in moves.values())


def test_where_no_single_move_helps_two_do() -> None:
    """A plan of a small swarm exchanges what a slow server and a fast one hold."""
    loads = [
        a_load("a", 0, 2, block_rows_per_s=2.0, max_blocks=3),
        a_load("b", 0, 2, block_rows_per_s=3.0, max_blocks=4),
        a_load("c", 2, 4, block_rows_per_s=1.0),
    ]
    moves = plan_moves(SwarmLoad(4, loads))
    after = [msgspec.structs.replace(one, goal=moves.get(one.peer, one.goal)) for one in loads]
    assert SwarmLoad(4, after).blocks.throughput.min() > 0.5 == SwarmLoad(4, loads).blocks.throughput.min()


@pytest.mark.parametrize("seed", range(5))
def test_a_plan_can_be_carried_out(seed: int) -> None:
    """Some order of its moves leaves no block without a server, though servers are few."""
    loads = some_loads(NUM_BLOCKS, 4, seed)
    moves = plan_moves(SwarmLoad(NUM_BLOCKS, loads))
    serves = {one.peer: one.goal for one in loads}
    waiting = set(moves)
    while waiting:
        free = [peer for peer in waiting if _covered([span for other, span in serves.items() if other != peer])]
        assert free
        serves[free[0]] = moves[free[0]]
        waiting.discard(free[0])


def _covered(spans: list[Span]) -> bool:
    return {block for span in spans for block in span.blocks()} == set(range(NUM_BLOCKS))


def test_fetching_has_its_price() -> None:
    """Servers that would have to fetch for hours fetch nothing, though they would otherwise."""
    loads = some_loads(NUM_BLOCKS, 20, seed=0)
    homes = {one.peer: one.goal for one in loads}
    slow = [msgspec.structs.replace(one, on_disk=(), fetch_s=3600.0) for one in loads]
    assert not all(homes[peer].covers(span) for peer, span in plan_moves(SwarmLoad(NUM_BLOCKS, loads)).items())
    assert all(homes[peer].covers(span) for peer, span in plan_moves(SwarmLoad(NUM_BLOCKS, slow)).items())


def test_joining_and_pinned_servers_are_no_part_of_a_plan() -> None:
    """The throughput of a joining server is not counted on; moving ones and those of their owners are left where they are."""
    loads = some_loads(NUM_BLOCKS, 20, seed=0)
    joining = a_load("0", 8, 12, joining=True)
    with_one = [*loads, msgspec.structs.replace(joining, serves=None)]
    assert plan_moves(SwarmLoad(NUM_BLOCKS, with_one)) == plan_moves(SwarmLoad(NUM_BLOCKS, loads))
    pinned = [msgspec.structs.replace(one, max_blocks=0) for one in loads[:10]]
    gone = [moving(one, one.goal) for one in loads[10:]]
    assert plan_moves(SwarmLoad(NUM_BLOCKS, [*pinned, *gone])) == {}


def test_the_best_single_move_is_found() -> None:
    """The same place and gain as by trying all spans."""
    loads = some_loads(NUM_BLOCKS, 6, seed=3)
    for mine in loads:
        span, gain = best_move(SwarmLoad(NUM_BLOCKS, loads), mine)
        gains = {}
        for length in range(1, 5):
            for start in range(NUM_BLOCKS - length + 1):
                there = msgspec.structs.replace(mine, goal=Span(start, start + length))
                swarm = SwarmLoad(NUM_BLOCKS, [there if one is mine else one for one in loads])
                gains[there.goal] = swarm.gain([there])
        assert gain == pytest.approx(gains[span])
        assert gain == pytest.approx(np.max(list(gains.values())))
