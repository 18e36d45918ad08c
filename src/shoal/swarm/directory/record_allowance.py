"""How much one source of records may ask of a node: so many a minute, whatever it is that it sends."""

from __future__ import annotations

from shoal.clock import Clock
from shoal.types import PeerId

MINUTE_S = 60.0

MAX_SOURCES = 4096
"""Sources remembered; beyond that the one that was idle longest is forgotten."""


class Allowance:
    """`per_minute` for each source, at once or spread; what was used comes back evenly."""

    def __init__(self, per_minute: int, clock: Clock) -> None:
        self._per_minute = per_minute
        self._clock = clock
        self._used: dict[PeerId, tuple[float, float]] = {}

    def take(self, source: PeerId) -> bool:
        """Whether this source may have one more now; if so, it is counted."""
        now = self._clock.monotonic()
        used, at = self._used.pop(source, (0.0, now))
        used = max(0.0, used - (now - at) * self._per_minute / MINUTE_S)
        granted = used + 1 <= self._per_minute
        if len(self._used) >= MAX_SOURCES:
            del self._used[next(iter(self._used))]
        self._used[source] = (used + granted, now)
        return granted
