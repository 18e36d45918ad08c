"""Who is waited for, and for how long; times are numbers that the tests choose."""

from __future__ import annotations

import random
from heapq import heapify, heappop, heappush

import pytest

from shoal.engine.batch_delay import MAX_HOLD_S, BatchDelay
from shoal.engine.batch_queue import BatchQueue
from shoal.protocol.rows import Rows

STEP_S = 0.04
LIMIT_S = STEP_S / 2


def after_a_round(*lags_s: float, turnaround_s: float = 0.01) -> tuple[BatchDelay, float]:
    """Members 0, 1, … shared a step, came back `turnaround_s` and their lag later, shared another one, and left just now."""
    delay = BatchDelay()
    delay.left(range(len(lags_s)), STEP_S, 1.0)
    for member, lag_s in enumerate(lags_s):
        delay.arrived(member, 1.0 + turnaround_s + lag_s)
    delay.left(range(len(lags_s)), STEP_S, 2.0)
    return delay, 2.0


def test_nobody_is_waited_for_at_first() -> None:
    """How long a member stays away is not known before it came back once."""
    delay = BatchDelay()
    assert delay.hold_s(0.0, 0.0) == 0
    delay.left("ab", STEP_S, 1.0)
    delay.arrived("a", 1.01)
    assert delay.hold_s(1.01, 1.01) == 0


def test_a_lone_member_never_waits() -> None:
    """However often it comes and goes."""
    delay = BatchDelay()
    for turn in range(10):
        delay.left(["lone"], STEP_S, float(turn))
        delay.arrived("lone", turn + 0.01)
        assert delay.hold_s(turn + 0.01, turn + 0.01) == 0


def test_the_first_waits_for_those_who_left_with_it() -> None:
    """Until the last of them has come, and no longer."""
    delay, left_at = after_a_round(0.0, 0.001, 0.002)
    now = left_at + 0.01
    delay.arrived(0, now)
    assert delay.hold_s(now, now) == pytest.approx(LIMIT_S)
    delay.arrived(1, now + 0.001)
    assert delay.hold_s(now, now + 0.001) == pytest.approx(LIMIT_S - 0.001)
    delay.arrived(2, now + 0.003)
    assert delay.hold_s(now, now + 0.003) == 0


def test_a_slower_round_parts_nobody() -> None:
    """All come back much later than the last time, but together: the first still waits for the second."""
    delay, left_at = after_a_round(0.0, 0.001)
    delay.arrived(0, left_at + 0.5)
    assert delay.hold_s(left_at + 0.5, left_at + 0.5) > 0


def test_whoever_takes_long_is_not_waited_for() -> None:
    """A member that usually comes back later than half of a step has no influence."""
    delay, left_at = after_a_round(0.0, 0.021)
    delay.arrived(0, left_at + 0.01)
    assert delay.hold_s(left_at + 0.01, left_at + 0.01) == 0


def test_two_groups_become_one() -> None:
    """Rows that waited through the other group's step wait a little more for the others, who are due soon."""
    delay, left_at = after_a_round(0.0, turnaround_s=0.005)
    assert delay.hold_s(left_at, left_at) == pytest.approx(LIMIT_S)


def test_whoever_stays_away_is_waited_for_once() -> None:
    """After the longest wait the step begins, and the next one does not wait for the same member."""
    delay, left_at = after_a_round(0.0, 0.001)
    now = left_at + 0.01
    delay.arrived(0, now)
    assert delay.hold_s(now, now) > 0
    assert delay.hold_s(now, now + LIMIT_S) == 0
    delay.left([0], STEP_S, 3.0)
    delay.arrived(0, 3.01)
    assert delay.hold_s(3.01, 3.01) == 0


def test_a_closed_session_is_not_waited_for() -> None:
    """The queue forgets it."""
    delay, left_at = after_a_round(0.0, 0.001)
    delay.arrived(0, left_at + 0.01)
    delay.forget(1)
    assert delay.hold_s(left_at + 0.01, left_at + 0.01) == 0


def test_the_wait_is_bounded_for_slow_steps() -> None:
    """Half of ten seconds would be a long time."""
    delay = BatchDelay()
    delay.left("a", 10.0, 0.0)
    assert delay.limit_s == MAX_HOLD_S


def test_somebody_is_away_between_two_steps_only() -> None:
    """Not before it is known to come back, not when it takes seconds for that, and not when it is long overdue."""
    delay = BatchDelay()
    delay.left("a", STEP_S, 1.0)
    assert not delay.anybody_away(1.0)
    delay.arrived("a", 1.1)
    assert not delay.anybody_away(1.1)
    delay.left("a", STEP_S, 2.0)
    assert delay.anybody_away(2.1)
    assert not delay.anybody_away(2.3)
    slow, left_at = after_a_round(0.0, turnaround_s=1.5)
    assert not slow.anybody_away(left_at + 0.1)


def mean_batch(sessions: int, turnaround_s: float, jitter_s: float) -> tuple[float, float]:
    """The mean number of sessions in a step, and of all steps' ends the last, of a server that is simulated for 300 steps."""
    rng, queue, now, free_at = random.Random(1), BatchQueue(), 0.0, 0.0
    coming = [(rng.random() * STEP_S, f"{index}") for index in range(sessions)]
    heapify(coming)
    sent = {session: 0 for _, session in coming}
    for session in sent:
        queue.open(session, "client")
    waiting: dict[str, float] = {}
    sizes: list[int] = []
    while len(sizes) < 300:
        while coming and coming[0][0] <= now:
            at, session = heappop(coming)
            queue.submit(Rows(session, sent[session], [0]), at)
            sent[session] += 1
            waiting[session] = at
        if not waiting:
            now = coming[0][0]
            continue
        since = max(free_at, min(waiting.values()))
        hold_s = queue.delay.hold_s(since, now)
        if hold_s > 0:
            now = min(since + queue.delay.limit_s, coming[0][0] if coming else now + hold_s)
            continue
        batch = queue.next_batch(now)
        now = free_at = now + STEP_S * (1 + 0.3 * rng.random())
        queue.finish(batch, [rows.hidden_states for rows in batch.rows], now)
        sizes.append(len(batch.rows))
        for rows in batch.rows:
            del waiting[rows.session]
            heappush(coming, (now + turnaround_s + jitter_s * rng.random(), rows.session))
    return sum(sizes[30:]) / len(sizes[30:]), now


@pytest.mark.parametrize(("turnaround_s", "jitter_s"), [(0.001, 0.001), (0.005, 0.005), (0.01, 0.003)])
def test_eight_sessions_share_their_steps(turnaround_s: float, jitter_s: float) -> None:
    """Wherever they begin, they end up in one group, where they would alternate in two without waiting."""
    batch, _ = mean_batch(8, turnaround_s, jitter_s)
    assert batch > 7.5


def test_one_session_takes_no_longer() -> None:
    """Every step begins when its row comes."""
    _, ended_at = mean_batch(1, 0.01, 0.0)
    assert ended_at < 300 * (0.01 + STEP_S * 1.3)
