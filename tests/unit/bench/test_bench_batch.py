"""What the benches of shared steps and long contexts make of their measurements."""

from __future__ import annotations

import pytest

from bench.concurrent import percentile, rates
from bench.longcontext import predicted
from shoal.errors import UsageError


def test_rates_are_of_the_time_in_which_all_decode() -> None:
    """From the last first token to the first last one; what lies outside does not count."""
    found = rates([[0.0, 1.0, 2.0, 3.0, 4.0], [1.0, 1.5, 2.0, 2.5, 3.0]])
    assert found.each == [1.0, 2.0]
    assert found.total == 3.0
    assert found.fairness == pytest.approx(2 / 3)


def test_replies_that_never_meet_are_refused() -> None:
    """There is no time to measure in."""
    with pytest.raises(UsageError, match="too short"):
        rates([[0.0, 1.0], [2.0, 3.0]])


def test_a_percentile_is_one_of_the_values() -> None:
    """Also of a single one."""
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile([5.0], 0.95) == 5.0


def test_the_curve_is_continued() -> None:
    """Linear and quadratic parts are told apart by two points."""

    def seconds(n: int) -> float:
        return 0.01 * n + 1e-6 * n * n

    assert predicted((100, 200), (seconds(100), seconds(200)), 1000) == pytest.approx(seconds(1000))
