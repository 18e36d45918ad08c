"""The scheduler's policy, by examples and by properties."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.engine.scheduler import DECODE_ROWS, Limits, Scheduler, Take
from shoal.errors import ServerFull

queues = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 300)), min_size=1, max_size=12)


def test_decode_goes_first_and_prefill_gets_its_chunk() -> None:
    """A step holds every decoding session's row and one chunk of the prefill."""
    scheduler = Scheduler()
    scheduler.add("long", "a", 1000)
    for index in range(5):
        scheduler.add(f"short {index}", "b", 1)
    takes = scheduler.pick()
    assert [take.session for take in takes] == [*(f"short {index}" for index in range(5)), "long"]
    assert takes[-1].num_rows == scheduler.limits.prefill_chunk_rows


def test_a_prefill_alone_takes_the_whole_step() -> None:
    """Nobody waits for it, so it need not be cut small."""
    scheduler = Scheduler()
    scheduler.add("long", "a", 1000)
    assert scheduler.pick() == [Take("long", scheduler.limits.max_step_rows)]


def test_many_sessions_get_no_more_than_one() -> None:
    """Two clients that prefill share the budget, however many sessions each has."""
    scheduler = Scheduler(Limits(prefill_chunk_rows=64, max_step_rows=64))
    for index in range(10):
        scheduler.add(f"many {index}", "many", 640)
    scheduler.add("one", "one", 640)
    rows: Counter[str] = Counter()
    for _ in range(10):
        for take in scheduler.pick():
            rows[take.session.split()[0]] += take.num_rows
    assert rows == {"many": 320, "one": 320}


def test_a_full_queue_refuses_with_a_time() -> None:
    """The time is what half of the queue takes at the measured rate."""
    scheduler = Scheduler(Limits(max_queued_rows=100))
    scheduler.add("a", "a", 80)
    with pytest.raises(ServerFull) as caught:
        scheduler.add("b", "b", 21, rows_per_s=10)
    assert caught.value.retry_after == pytest.approx(4)
    assert scheduler.queued_rows == 80


def test_dropped_rows_are_not_taken() -> None:
    """A rewind keeps the first of the queued rows, a close none."""
    scheduler = Scheduler()
    scheduler.add("a", "x", 10)
    scheduler.add("b", "x", 10)
    scheduler.drop("a", keep_rows=3)
    scheduler.drop("b")
    scheduler.drop("c")
    assert scheduler.pick() == [Take("a", 3)]
    assert scheduler.queued_rows == 0
    assert scheduler.pick() == []


@given(queues, st.integers(1, 40), st.integers(8, 80))
def test_everything_is_taken_within_the_budget(queued: list[tuple[int, int]], chunk: int, step: int) -> None:
    """Every step stays within its bounds and takes something; every row is taken once; prefill always moves."""
    scheduler = Scheduler(Limits(chunk, step))
    left = {}
    for index, (client, rows) in enumerate(queued):
        scheduler.add(f"s{index}", f"c{client}", rows)
        left[f"s{index}"] = rows
    while scheduler.queued_rows:
        prefilling = any(rows > DECODE_ROWS for rows in left.values())
        takes = scheduler.pick()
        assert takes
        assert sum(take.num_rows for take in takes) <= step
        assert len({take.session for take in takes}) == len(takes)
        assert not prefilling or any(left[take.session] > DECODE_ROWS for take in takes)
        for session, rows in takes:
            left[session] -= rows
            assert left[session] >= 0
    assert not any(left.values())


@given(st.lists(st.integers(1, 3), min_size=3, max_size=40))
def test_decoding_sessions_take_turns(sizes: list[int]) -> None:
    """When not all fit into a step, nobody is served twice before everybody was served once."""
    scheduler = Scheduler(Limits(4, 8))
    for index, rows in enumerate(sizes):
        scheduler.add(f"s{index}", f"c{index}", rows)
    seen: list[str] = []
    while scheduler.queued_rows:
        seen += [take.session for take in scheduler.pick()]
    assert set(seen) == {f"s{index}" for index in range(len(sizes))}
