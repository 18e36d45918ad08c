"""Where servers go, and when they move, by example; tests/property/test_placement.py lets whole swarms follow the rule."""

from __future__ import annotations

import pytest

from shoal.swarm.directory.records import ServerRecord
from shoal.swarm.placement.rebalancer import NOTICE_S, PATIENCE_S, REST_S, MovePlan, Rebalancer, judge_move
from shoal.swarm.placement.swarm_load import SwarmLoad, best_span, choose_span, holders, strengths
from shoal.types import ModelSpec, PeerId, Span

MANY = 60
"""Blocks of a model that is too large for plans of several moves."""


def server(name: str, start: int, stop: int, **changes: object) -> ServerRecord:
    """A server that makes 120 block·rows/s, with changes."""
    fields: dict[str, object] = {
        "peer": name * 64,
        "sequence": 1,
        "issued_at": 0.0,
        "expires_at": 300.0,
        "addresses": (),
        "model": ModelSpec("tiny", "f" * 32, 12, 48),
        "span": Span(start, stop),
        "prefill_rows_per_s": 120.0 / (stop - start),
        **changes,
    }
    return ServerRecord(**fields)  # type: ignore[arg-type]


def test_a_joining_server_takes_the_weakest_blocks() -> None:
    """First what nobody holds, then where it helps most; the first among equals; at least as many as were asked for."""
    held = [server("a", 0, 4)]
    assert choose_span(12, 4, []) == Span(0, 4)
    assert choose_span(12, 4, held) == Span(4, 8)
    assert choose_span(12, 4, [*held, server("b", 4, 8)]) == Span(8, 12)
    assert choose_span(12, 20, held) == Span(0, 12)
    assert choose_span(6, 2, [server("a", 0, 2), server("b", 3, 6)], fewest=2) == Span(2, 4)
    weak = [server("a", 0, 6), server("b", 0, 6), server("c", 6, 12, prefill_rows_per_s=1.0)]
    assert choose_span(12, 6, weak) == Span(6, 12)


def test_servers_count_where_they_will_be() -> None:
    """An announced move counts at its goal, a joining server where it goes, a leaving one nowhere."""
    moving = server("a", 0, 4, next_span=Span(4, 8))
    joining = server("b", 8, 12, draining=True, next_span=Span(8, 12))
    leaving = server("c", 0, 12, draining=True)
    assert strengths(12, holders(12, [moving, joining, leaving])).tolist() == [0] * 4 + [30] * 8
    assert choose_span(12, 4, [moving, joining, leaving]) == Span(0, 4)


@pytest.mark.parametrize("rate", [float("nan"), float("inf"), -1.0, 0.0])
def test_impossible_rates_count_as_the_median(rate: float) -> None:
    """What a peer writes into its record cannot make blocks look strong, or the arithmetic fail."""
    lying = server("a", 0, 4, prefill_rows_per_s=rate, max_blocks=1 << 19)
    assert strengths(12, holders(12, [lying, server("b", 4, 8)]))[:8].tolist() == [30] * 8


def test_a_scene_follows_its_servers() -> None:
    """Put, put again and dropped: strengths are those of what is there, exactly nothing where nothing is."""
    scene = SwarmLoad(12, holders(12, [server("a", 0, 7, prefill_rows_per_s=0.1), server("b", 3, 9)]))
    scene.put(holders(12, [server("b", 6, 12)])[0])
    scene.drop(PeerId("a" * 64))
    scene.drop(PeerId("a" * 64))
    assert scene.strength.tolist() == [0] * 6 + [20] * 6
    assert scene.holders.tolist() == scene.stayers.tolist() == [0] * 6 + [1] * 6
    assert best_span(scene, 6, 60.0, but=scene.held[PeerId("b" * 64)]) == Span(0, 6)


def crowded() -> list[ServerRecord]:
    """Five servers on the first half of MANY blocks and one on the other."""
    return [server(name, 0, 30, max_blocks=30) for name in "abcde"] + [server("f", 30, 60)]


def with_plan(records: list[ServerRecord], name: str, goal: Span) -> list[ServerRecord]:
    """The records after one server has announced a move."""
    return [
        server(name, record.span.start, record.span.stop, max_blocks=30, next_span=goal)
        if record.peer[0] == name
        else record
        for record in records
    ]


def test_a_move_is_announced_waited_for_and_made() -> None:
    """For a clear gain, after two rounds of gossip, while others serve what it leaves."""
    me, records = Rebalancer(PeerId("c" * 64)), crowded()
    verdict = judge_move(MANY, records, me, 0.0)
    assert verdict.action == "announce"
    assert verdict.span == Span(30, 60)
    assert judge_move(MANY, records, Rebalancer(me.peer, None, 10.0), 9.0).action == "wait"
    announced = Rebalancer(me.peer, MovePlan(verdict.span, 0.0, 50.0))
    records = with_plan(records, "c", verdict.span)
    for now, action in ((NOTICE_S - 0.1, "wait"), (49.0, "wait"), (50.0, "go")):
        assert judge_move(MANY, records, announced, now).action == action
    assert judge_move(MANY, records, announced, 50.0).rest_s == REST_S


def test_an_announced_move_is_withdrawn_when_others_were_first() -> None:
    """Servers that announced the same are counted where they go, and the gain is gone."""
    goal = Span(30, 60)
    records = crowded()
    for name in "abc":
        records = with_plan(records, name, goal)
    verdict = judge_move(MANY, records, Rebalancer(PeerId("c" * 64), MovePlan(goal, 0.0)), NOTICE_S)
    assert verdict.action == "withdraw"
    assert "gain" in verdict.why


def test_of_two_that_clash_the_lower_id_yields() -> None:
    """The last two servers of some blocks: one withdraws, the other waits until it sees that, then goes; not for ever."""
    goal = Span(30, 60)
    strong = {"prefill_rows_per_s": 400.0, "max_blocks": 30}
    records = [
        server("a", 0, 30, next_span=goal, **strong),
        server("b", 0, 30, next_span=goal, **strong),
        *(server(name, 30, 60, prefill_rows_per_s=0.01) for name in "cd"),
        *(server("0123456789"[n], 0, 30, draining=True, next_span=Span(0, 30), **strong) for n in range(9)),
        *(server("e", 0, 30, draining=True, next_span=Span(0, 30), **strong),),
    ]
    low, high = (Rebalancer(PeerId(name * 64), MovePlan(goal, 0.0)) for name in "ab")
    first = judge_move(MANY, records, low, NOTICE_S)
    assert (first.action, "block 0" in first.why) == ("withdraw", True)
    assert judge_move(MANY, records, high, NOTICE_S).action == "wait"
    assert judge_move(MANY, records, high, NOTICE_S + PATIENCE_S).action == "withdraw"
    stays = [server("a", 0, 30, **strong), *records[1:]]
    assert judge_move(MANY, stays, high, NOTICE_S).action == "go"


def test_the_last_server_of_a_block_stays() -> None:
    """However weak other blocks are, and a server that does not serve has nothing to decide."""
    records = [
        server("a", 0, 30, prefill_rows_per_s=1000.0, max_blocks=30),
        server("b", 30, 60, prefill_rows_per_s=0.1),
    ]
    for name in "ab":
        assert judge_move(MANY, records, Rebalancer(PeerId(name * 64)), 0.0).action == "wait"
    gone = server("a", 0, 30, draining=True)
    for mine in ([gone], []):
        assert judge_move(MANY, mine, Rebalancer(PeerId("a" * 64)), 0.0).action == "wait"


def test_small_swarms_plan_together() -> None:
    """Where no single move helps, two do: everybody finds the same plan, and only its first server acts."""
    records = [
        server("a", 0, 2, prefill_rows_per_s=2.0, max_blocks=3),
        server("b", 0, 2, prefill_rows_per_s=3.0, max_blocks=4),
        server("c", 2, 4, prefill_rows_per_s=1.0, max_blocks=2),
    ]
    verdicts = {record.peer[0]: judge_move(4, records, Rebalancer(PeerId(record.peer)), 0.0) for record in records}
    assert [name for name, verdict in verdicts.items() if verdict.action == "announce"] in (["a"], ["b"])
