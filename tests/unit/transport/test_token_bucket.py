"""Limits on rates: they hold whatever the pauses, and what was used comes back evenly."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.transport.token_bucket import TokenBucket, TokenBuckets
from tests.support.virtual_clock import VirtualClock

MINUTE_S = 60.0


async def test_tokens_come_back_evenly() -> None:
    """The burst at once, then as many as time gives back, and never more than the burst."""
    clock = VirtualClock()
    bucket = TokenBucket(1.0, 60, clock)
    assert [bucket.try_take() for _ in range(61)] == [True] * 60 + [False]
    assert bucket.wait_s() == 1.0
    await clock.advance(2.0)
    assert [bucket.try_take() for _ in range(3)] == [True, True, False]
    await clock.advance(10 * MINUTE_S)
    assert bucket.wait_s(60) == 0.0
    assert sum(bucket.try_take() for _ in range(100)) == 60


async def test_what_is_spent_may_be_more_than_there_is() -> None:
    """The debt is waited for like any other use."""
    clock = VirtualClock()
    bucket = TokenBucket(10.0, 5, clock)
    bucket.owe(25)
    assert (bucket.used, bucket.wait_s(0)) == (25.0, 2.0)
    await clock.advance(2.0)
    assert (bucket.used, bucket.wait_s(0)) == (5.0, 0.0)


def test_asking_for_a_source_remembers_nothing() -> None:
    """Else asking would have others forgotten."""
    buckets: TokenBuckets[str] = TokenBuckets(1.0, 5, VirtualClock(), max_sources=2)
    assert buckets.try_take("a")
    assert buckets.try_take("b")
    assert [buckets.used(source) for source in "cab"] == [0.0, 1.0, 1.0]


class SteppedClock(VirtualClock):
    """Moves without an event loop."""

    def step(self, seconds: float) -> None:
        """Move on."""
        self._now += seconds


@given(st.lists(st.floats(0.0, 30.0), max_size=60), st.integers(1, 20))
def test_no_minute_gives_more_than_the_burst_and_a_minute(pauses: list[float], per_minute: int) -> None:
    """Whatever the pauses: what was saved, and what came back meanwhile."""
    clock, granted = SteppedClock(), list[float]()
    bucket = TokenBucket(per_minute / MINUTE_S, per_minute, clock)
    for pause in pauses:
        clock.step(pause)
        if bucket.try_take():
            granted.append(clock.monotonic())
    for at in granted:
        assert sum(at <= then < at + MINUTE_S for then in granted) <= 2 * per_minute


async def test_a_debt_says_when_it_is_paid() -> None:
    """More than there is may be taken without waiting: what comes next waits longer."""
    clock = VirtualClock()
    bucket = TokenBucket(10.0, 2, clock)
    assert [bucket.owe() for _ in range(4)] == pytest.approx([0.0, 0.0, 0.1, 0.2])
    await clock.advance(0.3)
    assert bucket.owe() == 0.0


def test_a_source_may_have_several_times_as_much() -> None:
    """As it was when its bucket was made."""
    buckets: TokenBuckets[str] = TokenBuckets(1.0, 2, VirtualClock(), 10)
    assert [buckets.of("one").try_take() for _ in range(3)] == [True, True, False]
    assert [buckets.of("twice", 2).try_take() for _ in range(5)] == [True, True, True, True, False]


async def test_takers_wait_in_the_order_of_their_calls() -> None:
    """More than the burst may be taken; the debt is waited for, and who comes later waits longer."""
    clock, done = VirtualClock(), list[tuple[str, float]]()
    bucket = TokenBucket(1000.0, 100, clock)

    async def take(name: str, tokens: float) -> None:
        await bucket.take(tokens)
        done.append((name, clock.monotonic()))

    tasks = [asyncio.create_task(take(*each)) for each in (("burst", 100.0), ("large", 1000.0), ("small", 10.0))]
    await clock.advance(0.5)
    assert done == [("burst", 0.0)]
    await clock.advance(5.0)
    assert [(name, round(at, 6)) for name, at in done] == [("burst", 0.0), ("large", 1.0), ("small", 1.01)]
    await asyncio.gather(*tasks)


def test_sources_are_apart_and_bounded() -> None:
    """Each has a bucket of its own; the one that asked longest ago is forgotten, the busy ones stay limited."""
    buckets: TokenBuckets[str] = TokenBuckets(0.001, 2, VirtualClock(), max_sources=10)
    for number in range(50):
        buckets.try_take("busy")
        assert buckets.try_take(str(number))
    assert not buckets.try_take("busy")
    assert buckets.try_take("0")
    assert len(buckets._buckets) == 10
