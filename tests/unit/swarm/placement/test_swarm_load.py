"""What servers add up to, and who follows whose plan."""

from __future__ import annotations

import msgspec
import pytest

from shoal.swarm.directory.records import KEY_DIGITS, ServerRecord
from shoal.swarm.placement import swarm_load
from shoal.swarm.placement.swarm_load import DEFAULT_BLOCK_ROWS_PER_S, SINGLE_HOLDER, SwarmLoad, server_loads
from shoal.types import ModelSpec, PeerId, Span
from tests.loads import a_load, moving


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


def test_servers_count_where_they_will_be() -> None:
    """An announced move counts at its goal, a joining server where it goes, a leaving one nowhere."""
    moving = server("a", 0, 4, next_span=Span(4, 8))
    joining = server("b", 8, 12, draining=True, next_span=Span(8, 12))
    leaving = server("c", 0, 12, draining=True)
    swarm = SwarmLoad(12, server_loads(12, [moving, joining, leaving]))
    assert swarm.blocks.throughput.tolist() == [0] * 4 + [30] * 8
    assert swarm.settled.throughput.tolist() == [0] * 4 + [30] * 4 + [0] * 4
    assert swarm.committed.tolist() == [0] * 12
    assert [load.joining for load in swarm.servers.values()] == [False, True]


def test_records_outside_the_model_do_not_count() -> None:
    """Nor do goals there, whatever a peer writes."""
    beyond = server("b", 0, 4, next_span=Span(8, 40))
    assert server_loads(12, [server("a", 10, 13), beyond]) == []


@pytest.mark.parametrize("rate", [float("nan"), float("inf"), -1.0, 0.0])
def test_impossible_rates_count_as_the_median(rate: float) -> None:
    """What a peer writes into its record cannot make blocks look strong, or the arithmetic fail."""
    lying = server("a", 0, 4, prefill_rows_per_s=rate, max_blocks=1 << 19, fetch_s=rate)
    loads = server_loads(12, [lying, server("b", 4, 8)])
    assert SwarmLoad(12, loads).blocks.throughput[:8].tolist() == [30] * 8
    assert loads[0].fetch_s == 0.0
    assert server_loads(12, [lying])[0].block_rows_per_s == SwarmLoad(12).usual_rate == DEFAULT_BLOCK_ROWS_PER_S


def test_a_swarm_follows_its_servers() -> None:
    """Put, put again and dropped: throughput is that of what is there, exactly nothing where nothing is."""
    swarm = SwarmLoad(12, [a_load("a", 0, 7, block_rows_per_s=0.7), a_load("b", 3, 9)])
    swarm.put(a_load("b", 6, 12))
    for _ in range(2):
        swarm.drop(PeerId("a" * 64))
    assert swarm.blocks.throughput.tolist() == [0] * 6 + [20] * 6
    assert swarm.blocks.holders.tolist() == swarm.committed.tolist() == [0] * 6 + [1] * 6


def test_the_objective_counts_the_loss_of_one_holder() -> None:
    """A block of a single holder is weaker than one of two with the same throughput; missing blocks are finitely bad."""
    single = SwarmLoad(2, [a_load("a", 0, 2)]).blocks
    double = SwarmLoad(2, [a_load("a", 0, 2, block_rows_per_s=60.0), a_load("b", 0, 2, block_rows_per_s=60.0)]).blocks
    assert swarm_load.soft_minimum_gain(single.weakness(60.0), double.weakness(60.0)) == pytest.approx(
        1 / SINGLE_HOLDER
    )
    assert SwarmLoad(2).blocks.weakness(60.0) < float("inf")


def test_a_gain_is_that_of_the_moves() -> None:
    """With announced or planned moves counted, against each where it serves; the most that one server can bring bounds it."""
    loads = [a_load("a", 0, 4), a_load("b", 0, 4), a_load("c", 4, 8, block_rows_per_s=30.0)]
    swarm = SwarmLoad(8, [moving(loads[0], Span(4, 8)), *loads[1:]])
    gain = swarm.gain([swarm.servers[loads[0].peer]])
    assert 1.5 < gain <= SwarmLoad(8, loads).best_gain(4)
    assert SwarmLoad(8, loads).gain(loads) == 1.0


def test_the_author_s_plan_places_servers() -> None:
    """The first that serves is the author; what its plan cannot ask of a server is passed over, as are others' plans."""
    goals = {"1": Span(4, 8), "2": Span(0, 8), "3": Span(6, 10), "4": Span(4, 8), "5": Span(4, 8)}
    plan = tuple((name * KEY_DIGITS, span) for name, span in goals.items())
    author = a_load("0", 0, 4, plan=plan)
    loads = [author, *(a_load(name, 0, 4, plan=((name * KEY_DIGITS, Span(2, 6)),)) for name in "123")]
    loads += [moving(a_load("4", 0, 4), Span(1, 5)), a_load("5", 0, 4, max_blocks=0)]
    swarm = SwarmLoad(8, loads)
    assert swarm.author == author.peer
    assert swarm.watchers == ["0" * 64, "1" * 64]
    assert [one.goal.start for one in swarm.servers.values()] == [0, 4, 0, 0, 1, 0]
    assert [one.peer[0] for one in swarm.servers.values() if one.planned] == ["1"]


def test_the_next_is_the_author_when_the_first_is_gone() -> None:
    """Its plan counts then; a swarm that is too large has no author."""
    loads = [a_load("0", 0, 4), a_load("1", 0, 4, plan=(("2" * KEY_DIGITS, Span(4, 8)),)), a_load("2", 0, 4)]
    assert not any(one.planned for one in SwarmLoad(8, loads).servers.values())
    later = SwarmLoad(8, loads).without([PeerId("0" * 64)])
    assert later.author == "1" * 64
    assert later.servers[PeerId("2" * 64)].planned


def test_a_swarm_that_is_too_large_follows_no_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers count where they say; without some of them, the others do."""
    monkeypatch.setattr(swarm_load, "MAX_PLANNED_SERVERS", 1)
    swarm = SwarmLoad(8, [a_load("0", 0, 4, plan=(("1" * KEY_DIGITS, Span(4, 8)),)), a_load("1", 0, 4)])
    assert swarm.author is None
    assert swarm.watchers == []
    fewer = swarm.without([PeerId("0" * 64)])
    assert fewer.committed.tolist() == [1] * 4 + [0] * 4
    assert swarm.committed.tolist() == [2] * 4 + [0] * 4


def test_others_stay_where_they_have_announced_nothing() -> None:
    """A server misses its blocks that no other committed server serves, whether it has announced a move itself or not."""
    loads = [a_load("a", 0, 4), a_load("b", 0, 2), moving(a_load("c", 2, 4), Span(0, 2))]
    for first in (loads[0], moving(loads[0], Span(4, 8))):
        swarm = SwarmLoad(8, [first, *loads[1:]])
        assert swarm.uncovered_without(first) == [2, 3]
        assert not swarm.others_stay(first)
    back = msgspec.structs.replace(loads[2], goal=Span(2, 4), moving=False)
    assert SwarmLoad(8, [*loads[:2], back]).others_stay(loads[0])
