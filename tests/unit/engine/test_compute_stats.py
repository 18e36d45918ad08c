"""What steps say of a server's speed."""

from __future__ import annotations

from shoal.engine.compute_stats import ComputeStats


def test_rows_that_were_found_do_not_count_as_computed() -> None:
    """They would make a server look faster than it is."""
    stats = ComputeStats()
    stats.count(1, 100, 100, 2.0, decoding=False)
    stats.count(1, 128, 128, 0.001, decoding=False, found_rows=128)
    assert (stats.prefill_rows_per_s, stats.step_s) == (50.0, 2.0)
    stats.count(1, 128, 128, 1.28, decoding=False, found_rows=64)
    assert stats.prefill_rows_per_s == 50.0
    assert (stats.steps, stats.rows, stats.found_rows) == (3, 356, 192)
