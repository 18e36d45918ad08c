"""What the soak makes of what it has seen."""

from __future__ import annotations

import pytest

from bench.soak import SHOWN, Sample, _shown, _summary, climb


def test_the_slope_is_that_of_the_second_half() -> None:
    """What is loaded in the beginning does not count, and what is kept of each call does."""
    samples = [Sample(calls, 100.0 + min(calls, 500), 50.0 + calls / 100) for calls in range(10, 1001, 10)]
    client, server = (_summary(samples, party) for party in ("client", "server"))
    assert client["mb_per_1000_calls"] == pytest.approx(0, abs=0.5)
    assert (client["first"], client["last"], client["most"]) == (110.0, 600.0, 600.0)
    assert server["mb_per_1000_calls"] == pytest.approx(10)


def test_one_point_has_no_slope() -> None:
    """A soak of one call says nothing about more."""
    assert climb([1], [5.0]) == 0.0


def test_some_samples_are_shown() -> None:
    """Evenly, and the last."""
    shown = _shown([Sample(calls, 1.0, 1.0) for calls in range(20, 2001, 20)])
    assert len(shown) == SHOWN
    assert [one.calls for one in (shown[0], shown[1], shown[-1])] == [100, 200, 2000]
    assert [one.calls for one in _shown([Sample(3, 1.0, 1.0)])] == [3]
