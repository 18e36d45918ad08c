"""How long a phase will take still."""

from __future__ import annotations

from shoal.quantize.time_left import TimeLeft
from tests.support.virtual_clock import VirtualClock


def test_by_the_pace_of_the_phase() -> None:
    """Not said before anything was done, nor from what an earlier run did, and anew for each phase."""
    clock = VirtualClock()
    left = TimeLeft(clock)
    assert left.observe("measuring", 5, 20) is None
    clock.skip(10.0)
    assert left.observe("measuring", 10, 20) == 20.0
    assert left.observe("quantizing", 0, 4) is None
    clock.skip(3.0)
    assert left.observe("quantizing", 1, 4) == 9.0
