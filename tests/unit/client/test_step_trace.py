"""Where a step's time went, on the client's clock."""

from __future__ import annotations

import pytest

from shoal.client.step_trace import HopTime, StepTrace, step_trace
from shoal.protocol.messages import HopTrace

HOPS = (HopTrace(100.25, 0.125, 0.5, 2, 3), HopTrace(101.0, 0.0, 1.0))


def test_each_hops_part() -> None:
    """Links are what is left between leaving one party and being received by the next."""
    trace = step_trace(100.0, 102.5, ("a", "b"), HOPS, (0.0, 0.0))
    assert trace == StepTrace(
        2.5, (HopTime("a", 0.25, 0.125, 0.5, 2, 3), HopTime("b", 0.125, 0.0, 1.0, 1, 1)), return_s=0.5
    )
    assert (trace.compute_s, trace.network_s) == (1.5, 1.0)


@pytest.mark.parametrize("offsets", [(0.0, 0.0), (3600.0, -3600.0), (-0.5, 0.25)])
def test_clocks_that_disagree_move_time_between_links_only(offsets: tuple[float, float]) -> None:
    """The sum needs no agreement of clocks; with the offsets known, neither do the parts."""
    ahead = [
        HopTrace(hop.received_at + offset, hop.queue_s, hop.compute_s)
        for hop, offset in zip(HOPS, offsets, strict=True)
    ]
    plain, known = (step_trace(100.0, 102.5, ("a", "b"), ahead, given) for given in ((0.0, 0.0), offsets))
    assert plain.network_s == known.network_s == 1.0
    assert [hop.network_s for hop in known.hops] == [0.25, 0.125]
    assert sum(hop.network_s + hop.queue_s + hop.compute_s for hop in plain.hops) + plain.return_s == 2.5
    assert min(plain.return_s, *(hop.network_s for hop in plain.hops)) >= 0.0


def test_no_link_takes_less_than_no_time() -> None:
    """Whatever hops say of their clocks and of their work."""
    for hops in (HOPS, (HopTrace(-1e9, 50.0, 50.0), HopTrace(1e9, 0.0, 7.0))):
        for offsets in ((0.0, 0.0), (5.0, -5.0), (-5.0, 5.0)):
            trace = step_trace(100.0, 102.5, ("a", "b"), hops, offsets)
            assert min(trace.network_s, trace.return_s, *(hop.network_s for hop in trace.hops)) >= 0.0
            assert trace.total_s == 2.5


def test_a_trace_is_of_all_hops() -> None:
    """Names that do not belong to it are a mistake here."""
    with pytest.raises(ValueError, match="zip"):
        step_trace(100.0, 102.5, ("a",), HOPS, (0.0, 0.0))


def test_no_hops_at_all() -> None:
    """All time is the way back."""
    trace = step_trace(1.0, 3.0, (), (), ())
    assert (trace.compute_s, trace.network_s, trace.return_s) == (0.0, 2.0, 2.0)
