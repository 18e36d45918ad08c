"""What one source of records may ask of a node."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shoal.swarm.directory.record_allowance import MAX_SOURCES, MINUTE_S, Allowance
from shoal.types import PeerId
from tests.unit.swarm.directory.test_records import FixedClock

ONE, OTHER = PeerId("1" * 64), PeerId("2" * 64)


def test_an_allowance_comes_back_evenly() -> None:
    """All at once, then as many as time gives back, and never more than a minute's worth."""
    clock = FixedClock()
    allowance = Allowance(60, clock)
    assert [allowance.take(ONE) for _ in range(61)] == [True] * 60 + [False]
    assert allowance.take(OTHER)
    clock.now += 2.0
    assert [allowance.take(ONE) for _ in range(3)] == [True, True, False]
    clock.now += 10 * MINUTE_S
    assert sum(allowance.take(ONE) for _ in range(100)) == 60


@given(st.lists(st.floats(0.0, 30.0), max_size=60), st.integers(1, 20))
def test_no_minute_gives_more_than_two_of_them(pauses: list[float], per_minute: int) -> None:
    """Whatever the pauses: what is granted within a minute is at most what was saved and what came back meanwhile."""
    clock, granted = FixedClock(), list[float]()
    allowance = Allowance(per_minute, clock)
    for pause in pauses:
        clock.now += pause
        if allowance.take(ONE):
            granted.append(clock.now)
    for at in granted:
        assert sum(at <= then < at + MINUTE_S for then in granted) <= 2 * per_minute


def test_sources_are_bounded() -> None:
    """The one that was idle longest is forgotten; the busy ones stay limited."""
    allowance = Allowance(2, FixedClock())
    for number in range(MAX_SOURCES + 10):
        allowance.take(ONE)
        allowance.take(PeerId(f"{number:064x}"))
    assert len(allowance._used) == MAX_SOURCES
    assert not allowance.take(ONE)
