"""What a server has done since it was started, whatever blocks it served meanwhile."""

from __future__ import annotations

import msgspec

from shoal.clock import Clock


class Totals(msgspec.Struct, frozen=True):
    """Sessions opened, rows computed, rows found in the prefix cache, moves to other blocks."""

    sessions: int = 0
    rows: int = 0
    found_rows: int = 0
    moves: int = 0


class Ledger:
    """Counts for a server's whole life; a served span adds its rows as they are computed."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._started_at = clock.monotonic()
        self._totals = Totals()

    @property
    def uptime_s(self) -> float:
        """Seconds since the server was started."""
        return self._clock.monotonic() - self._started_at

    @property
    def totals(self) -> Totals:
        """The counts now."""
        return self._totals

    def add(self, sessions: int = 0, rows: int = 0, found_rows: int = 0, moves: int = 0) -> None:
        """Count more."""
        now = self._totals
        self._totals = Totals(now.sessions + sessions, now.rows + rows, now.found_rows + found_rows, now.moves + moves)
