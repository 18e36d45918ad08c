"""Plans of a medium swarm: who writes them, what they do, and whom they bind."""

from __future__ import annotations

import random

import msgspec

from shoal.swarm.directory.records import KEY_DIGITS, ServerRecord, sign_record
from shoal.swarm.identity import Identity
from shoal.swarm.placement.local_search import MOST_MOVES, plan_together
from shoal.swarm.placement.rebalancer import TRUST_S, Rebalancer, judge_move
from shoal.swarm.placement.shared_plan import PlanAuthor, agreed_holders, choose_place, is_gain, medium, planner
from shoal.swarm.placement.swarm_load import ServerLoad, holders, strengths
from shoal.types import ModelSpec, PeerId, Span

NUM_BLOCKS = 12


def a_swarm(count: int = 20, seed: int = 0) -> list[ServerRecord]:
    """Servers of four blocks each, anywhere; all blocks are served."""
    rng = random.Random(seed)
    starts = [*range(0, NUM_BLOCKS, 4), *(rng.randint(0, NUM_BLOCKS - 4) for _ in range(count - 3))]
    return [
        ServerRecord(
            f"{rng.getrandbits(256):064x}",
            1,
            0.0,
            300.0,
            (),
            ModelSpec("tiny", "f" * 32, NUM_BLOCKS, 48),
            Span(start, start + 4),
            prefill_rows_per_s=rng.choice([1.0, 2.0, 5.0]),
            max_blocks=4,
            on_disk=(Span(0, NUM_BLOCKS),),
        )
        for start in starts
    ]


def with_plan(records: list[ServerRecord]) -> list[ServerRecord]:
    """The records after the planning server has planned."""
    held = agreed_holders(NUM_BLOCKS, records)
    first = planner(held)
    assert first is not None
    plan = PlanAuthor().draft(NUM_BLOCKS, held, first)
    assert plan
    return [msgspec.structs.replace(one, plan=plan) if one.peer == first else one for one in records]


def test_a_plan_is_a_gain_and_bounded() -> None:
    """The weakest block becomes stronger by at most so many moves, and the same plan comes of the same servers."""
    held = holders(NUM_BLOCKS, a_swarm())
    moves = plan_together(NUM_BLOCKS, held)
    assert 0 < len(moves) <= MOST_MOVES
    assert moves == plan_together(NUM_BLOCKS, held)
    after = [msgspec.structs.replace(one, goal=moves.get(one.peer, one.goal)) for one in held]
    assert strengths(NUM_BLOCKS, after).min() > strengths(NUM_BLOCKS, held).min()
    assert is_gain(NUM_BLOCKS, after)
    assert all(len(span) <= 4 for span in moves.values())


def test_fetching_has_its_price() -> None:
    """Servers that would have to fetch for hours fetch nothing, though they would otherwise."""
    held = holders(NUM_BLOCKS, a_swarm())
    homes = {one.peer: one.goal for one in held}
    slow = [msgspec.structs.replace(one, on_disk=(), fetch_s=3600.0) for one in held]
    assert not all(homes[peer].covers(span) for peer, span in plan_together(NUM_BLOCKS, held).items())
    assert all(homes[peer].covers(span) for peer, span in plan_together(NUM_BLOCKS, slow).items())


def test_only_the_first_plans_and_only_on_news() -> None:
    """Others do not, and the first not twice for the same swarm; a departure is news."""
    held = agreed_holders(NUM_BLOCKS, a_swarm())
    first = planner(held)
    assert first == min(one.peer for one in held)
    drafter = PlanAuthor()
    assert drafter.draft(NUM_BLOCKS, held, max(one.peer for one in held)) is None
    assert drafter.draft(NUM_BLOCKS, held, first) is not None
    assert drafter.draft(NUM_BLOCKS, held, first) is None
    assert drafter.draft(NUM_BLOCKS, held[:-1], first) is not None
    assert not medium(16)


def test_those_who_are_planned_for_follow() -> None:
    """They announce the plan's goal at once, the others nothing."""
    records = with_plan(a_swarm())
    plan = dict(min(records, key=lambda one: one.peer).plan)
    for record in records:
        verdict = judge_move(NUM_BLOCKS, records, Rebalancer(PeerId(record.peer)), 0.0)
        if verdict.action == "announce":
            assert verdict.agreed
            assert verdict.span == plan[record.peer[:KEY_DIGITS]]
        assert record.peer[:KEY_DIGITS] in plan or verdict.action == "wait"


def test_a_plan_that_is_no_gain_is_not_followed() -> None:
    """The first server says that all should crowd into the first blocks: nobody does."""
    records = a_swarm()
    first = min(record.peer for record in records)
    bad = tuple((record.peer[:KEY_DIGITS], Span(0, 4)) for record in records[:MOST_MOVES])
    told = [msgspec.structs.replace(one, plan=bad) if one.peer == first else one for one in records]
    assert all(judge_move(NUM_BLOCKS, told, Rebalancer(PeerId(one.peer)), 0.0).action == "wait" for one in told)


def test_without_a_plan_servers_move_alone_after_a_while() -> None:
    """The first server never plans: the others trust it for so long."""
    records = [one for one in a_swarm(30, seed=1) if one.span.stop < NUM_BLOCKS]
    verdicts = {one.peer: judge_move(NUM_BLOCKS, records, Rebalancer(PeerId(one.peer)), 0.0) for one in records}
    uneasy = [peer for peer, verdict in verdicts.items() if verdict.uneasy]
    assert uneasy
    assert all(verdict.action == "wait" for verdict in verdicts.values())
    later = judge_move(NUM_BLOCKS, records, Rebalancer(PeerId(uneasy[0]), uneasy_since=0.0), TRUST_S)
    assert later.action == "announce"
    assert not later.agreed


def test_a_record_with_the_longest_plan_fits() -> None:
    """Beside four round trips and two addresses."""
    identity = Identity.generate()
    record = msgspec.structs.replace(
        a_swarm()[0],
        peer=identity.peer,
        model=ModelSpec("meta-llama/Llama-3.1-405B", "f" * 64, 126, 16384),
        span=Span(100, 120),
        addresses=("tls://203.0.113.255:65535", "tls://[2001:db8:1234:5678:9abc:def0:1234:5678]:65535"),
        plan=tuple((f"{n:08x}", Span(100, 120)) for n in range(MOST_MOVES)),
        on_disk=(Span(0, 9), Span(20, 30), Span(50, 60), Span(100, 126)),
        round_trips=tuple((f"{n:064x}", 0.123) for n in range(4)),
    )
    sign_record(record, identity)


def test_a_joining_server_helps_where_the_plan_leaves_a_gap() -> None:
    """The last blocks are held by few; who asks for a number of blocks gets as many."""
    records = [one for one in a_swarm(30, seed=1) if one.span.stop < NUM_BLOCKS]
    assert choose_place(NUM_BLOCKS, 4, records).stop == NUM_BLOCKS
    assert len(choose_place(NUM_BLOCKS, 4, records, fewest=4)) == 4


def a_holder(peer: str, span: Span) -> ServerLoad:
    """A server that stays."""
    return ServerLoad(PeerId(peer * 64), span, span, False, 1.0, 4)


def test_joining_servers_are_not_waited_for() -> None:
    """Their strength is no part of a plan: they may be long."""
    held = [
        *holders(NUM_BLOCKS, a_swarm()),
        msgspec.structs.replace(a_holder("0", Span(0, 4)), serves=None, joining=True),
    ]
    first = planner(held)
    assert first != "0" * 64
    without = PlanAuthor().draft(NUM_BLOCKS, held[:-1], first)  # type: ignore[arg-type]  # there is one
    assert PlanAuthor().draft(NUM_BLOCKS, held, first) == without  # type: ignore[arg-type]  # there is one
