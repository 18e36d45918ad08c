"""What a server has done since it was started."""

from __future__ import annotations

from shoal.server.ledger import Ledger, Totals
from tests.support.virtual_clock import VirtualClock


async def test_counts_add_up_and_time_runs_on() -> None:
    """Spans come and go; the counts and the uptime are those of the server."""
    clock = VirtualClock()
    ledger = Ledger(clock)
    ledger.add(sessions=2, rows=10)
    await clock.advance(5.0)
    ledger.add(rows=5, found_rows=3, moves=1)
    assert ledger.totals == Totals(sessions=2, rows=15, found_rows=3, moves=1)
    assert ledger.uptime_s == 5.0
