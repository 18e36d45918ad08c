"""What the scheduler keeps for any traffic: bounds, order, progress, fairness."""

from __future__ import annotations

from collections import Counter
from itertools import chain, repeat

from hypothesis import given
from hypothesis import strategies as st

from shoal.engine.scheduler import DECODE_ROWS, Limits, Scheduler

limits = st.tuples(st.integers(1, 40), st.integers(2, 80)).map(lambda bounds: Limits(*bounds))
arrivals = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(1, 60)), max_size=4)
drops = st.lists(st.tuples(st.integers(0, 15), st.integers(0, 100)), max_size=2)
traffics = st.lists(st.tuples(arrivals, drops), max_size=6)


def most(scheduler: Scheduler) -> int:
    """The decoding rows that fit beside a prefill."""
    return scheduler.limits.max_step_rows - min(
        scheduler.limits.prefill_chunk_rows, scheduler.limits.max_step_rows // 2
    )


Traffic = list[tuple[list[tuple[int, int, int]], list[tuple[int, int]]]]


@given(limits, traffics)
def test_bounds_and_progress_under_any_traffic(bounds: Limits, traffic: Traffic) -> None:
    """Each step is within its budget and useful; rows are neither lost nor invented; both kinds move."""
    scheduler = Scheduler(bounds)
    left: Counter[str] = Counter()
    for step, (added, dropped) in enumerate(chain(traffic, repeat(([], [])))):
        for client, number, rows in added:
            scheduler.add(f"{client}.{number}", f"{client}", rows)
            left[f"{client}.{number}"] += rows
        for session, keep in dropped:
            name = f"{session // 4}.{session % 4}"
            scheduler.drop(name, keep)
            left[name] = min(left[name], keep)
        assert scheduler.queued_rows == left.total()
        takes = scheduler.pick()
        taken = dict(takes)
        assert len(taken) == len(takes)
        assert sum(taken.values()) <= bounds.max_step_rows
        assert all(0 < rows <= left[session] for session, rows in takes)
        prefill = {session for session in left if left[session] > DECODE_ROWS}
        decode = {session for session in left if 0 < left[session] <= DECODE_ROWS}
        room = min(
            bounds.prefill_chunk_rows, bounds.max_step_rows - sum(taken[session] for session in decode & set(taken))
        )
        assert sum(taken[session] for session in prefill & set(taken)) == min(room, sum(left[name] for name in prefill))
        assert [session in prefill for session in taken] == sorted(session in prefill for session in taken)
        assert not prefill or prefill & set(taken)
        assert not decode or decode & set(taken)
        left.subtract(taken)
        if step >= len(traffic) and not left.total():
            break
    assert scheduler.queued_rows == 0
    assert scheduler.pick() == []


@given(limits, st.lists(st.integers(1, DECODE_ROWS), min_size=1, max_size=30), st.booleans())
def test_no_decoding_client_starves(bounds: Limits, sizes: list[int], prefilling: bool) -> None:
    """Clients that ask again as soon as they are served wait no longer than one round of all of them."""
    scheduler = Scheduler(bounds)
    waited = dict.fromkeys(range(len(sizes)), 0)
    for client, rows in enumerate(sizes):
        scheduler.add(f"{client}", f"{client}", rows)
    if prefilling:
        scheduler.add("long", "other", 50_000)
    budget = most(scheduler) if prefilling else bounds.max_step_rows
    for _ in range(100):
        taken = dict(scheduler.pick())
        for client in range(len(sizes)):
            waited[client] = 0 if f"{client}" in taken else waited[client] + 1
            if f"{client}" in taken:
                scheduler.add(f"{client}", f"{client}", taken[f"{client}"])
        assert max(waited.values()) <= -(-sum(sizes) // budget)


@given(limits, st.lists(st.integers(1, 6), min_size=1, max_size=6))
def test_prefilling_clients_get_equal_shares(bounds: Limits, sessions: list[int]) -> None:
    """While all have more than enough, no client is ever more than a row ahead, whatever its number of sessions."""
    scheduler = Scheduler(bounds)
    for client, count in enumerate(sessions):
        for number in range(count):
            scheduler.add(f"{client}.{number}", f"{client}", 1500)
    rows = Counter({f"{client}": 0 for client in range(len(sessions))})
    for _ in range(30):
        for session, count in scheduler.pick():
            rows[session.split(".")[0]] += count
        assert max(rows.values()) - min(rows.values()) <= 1


@given(limits, st.lists(st.integers(1, 4), min_size=2, max_size=5))
def test_decoding_clients_are_served_once_before_any_is_served_twice(bounds: Limits, sessions: list[int]) -> None:
    """Within a step that is too small for all, a client's second session comes after every client's first."""
    scheduler = Scheduler(bounds)
    for client, count in enumerate(sessions):
        for number in range(count):
            scheduler.add(f"{client}.{number}", f"{client}", 1)
    served = Counter(take.session.split(".")[0] for take in scheduler.pick())
    for client, count in enumerate(sessions):
        assert served[f"{client}"] >= min(count, max(served.values()) - 1)


timed_steps = st.lists(
    st.tuples(st.sets(st.integers(0, 5)), st.booleans(), st.floats(1e-4, 1.0), st.floats(0.0, 1.0)), max_size=40
)


@given(limits, timed_steps)
def test_whatever_steps_take_prefill_moves_and_waits_end(
    bounds: Limits, steps: list[tuple[set[int], bool, float, float]]
) -> None:
    """With any measured times: prefill has a row in every step and never more than a chunk, all that decodes fits beside it,
    and a step that waits for company begins after the longest wait at the latest."""
    scheduler, now = Scheduler(bounds), 0.0
    waiting: set[int] = set()
    scheduler.add("long", "other", 60_000, now=now)
    for arrived, clumsy, elapsed_s, pause_s in steps:
        for client in arrived - waiting:  # whoever decodes brings a row when it has got the last one
            scheduler.add(f"{client}", f"{client}", 1, now=now)
        waiting |= arrived
        since = now
        hold_s = scheduler.hold_s(since, now)
        assert 0 <= hold_s <= scheduler.gathering.limit_s + 1e-9
        now += hold_s
        assert scheduler.hold_s(since, now + 1e-9) == 0
        taken = scheduler.pick(now)
        rows = dict(taken)
        assert 1 <= rows.pop("long") <= bounds.prefill_chunk_rows
        assert rows or not waiting
        waiting -= set(map(int, rows))
        began_at, now = now, now + elapsed_s
        scheduler.done(taken, began_at, now, hold_s if clumsy else 0.0)
        now += pause_s
