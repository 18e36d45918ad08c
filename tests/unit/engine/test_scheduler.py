"""The scheduler's policy by examples; tests/property/test_scheduler.py has what holds always."""

from __future__ import annotations

from collections import Counter

import pytest

from shoal.engine.scheduler import Limits, Scheduler, Take
from shoal.errors import ServerFull, UsageError


def test_decode_goes_first_and_prefill_gets_its_chunk() -> None:
    """A step holds every decoding session's row and one chunk of the prefill."""
    scheduler = Scheduler()
    scheduler.add("long", "a", 1000)
    for index in range(5):
        scheduler.add(f"short {index}", "b", 1)
    takes = scheduler.pick()
    assert [take.session for take in takes] == [*(f"short {index}" for index in range(5)), "long"]
    assert takes[-1].num_rows == scheduler.limits.prefill_chunk_rows


def test_a_prefill_alone_is_cut_as_well() -> None:
    """Whoever decodes is between two tokens and comes back before a whole prompt is through."""
    scheduler = Scheduler()
    scheduler.add("long", "a", 150)
    assert [scheduler.pick() for _ in range(4)] == [
        [Take("long", 64)],
        [Take("long", 64)],
        [Take("long", 22)],
        [],
    ]


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


def test_short_prompts_share_a_step() -> None:
    """What one session does not need goes to the next, of the same client too."""
    scheduler = Scheduler(Limits(prefill_chunk_rows=128))
    for index in range(6):
        scheduler.add(f"short {index}", "gateway", 20)
    scheduler.add("long", "other", 500)
    takes = dict(scheduler.pick())
    assert takes == {"short 0": 20, "short 1": 20, "short 2": 20, "short 3": 4, "long": 64}
    assert dict(scheduler.pick()) == {"short 4": 20, "short 5": 20, "short 3": 16, "long": 72}


def test_what_a_short_prompt_leaves_goes_to_a_long_one() -> None:
    """Also when the long one is first in turn."""
    scheduler = Scheduler()
    scheduler.add("long", "a", 500)
    scheduler.add("short", "b", 20)
    assert dict(scheduler.pick()) == {"short": 20, "long": 44}


def test_a_clients_prefills_take_turns() -> None:
    """A session that was served stands behind the client's others."""
    scheduler = Scheduler(Limits(prefill_chunk_rows=10))
    for name in "ab":
        scheduler.add(name, "client", 40)
    assert [take.session for _ in range(4) for take in scheduler.pick()] == ["a", "b", "a", "b"]


def test_a_client_that_comes_back_at_once_waits_for_the_others() -> None:
    """When a step holds one row, three clients that decode get it in turn."""
    scheduler = Scheduler(Limits(prefill_chunk_rows=1, max_step_rows=2))
    for name in "abc":
        scheduler.add(name, name, 2)
    order = []
    for _ in range(6):
        (take,) = scheduler.pick()
        order.append(take.session)
        scheduler.add(take.session, take.session, 2)
    assert order == ["a", "b", "c", "a", "b", "c"]


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


def test_what_cannot_be_is_refused() -> None:
    """A queue entry without rows, a step without room."""
    with pytest.raises(ValueError, match="0 rows"):
        Scheduler().add("a", "a", 0)
    for limits in (Limits(0), Limits(1, 1), Limits(1, 2, 0)):
        with pytest.raises(UsageError):
            Scheduler(limits)


def test_rows_under_way_leave_out_their_session_and_all_prefill() -> None:
    """Room is kept for a chunk of them; whoever decodes is picked as ever."""
    scheduler = Scheduler(Limits(prefill_chunk_rows=16, max_step_rows=24), depth=4)
    for name in ("prompt", "other"):
        scheduler.add(name, name, 40)
    assert scheduler.pick() == [Take("prompt", 8), Take("other", 8)]
    assert scheduler.prefills("prompt")
    assert scheduler.blocks(16) == 4  # nobody decodes
    for number in range(6):
        scheduler.add(f"decode {number}", f"client {number}", 4)
    takes = scheduler.pick(under_way=["prompt", "other"])
    assert all(take.session.startswith("decode") for take in takes)
    assert sum(take.num_rows for take in takes) == 12
    assert not scheduler.prefills("prompt")
