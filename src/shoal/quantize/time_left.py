"""How long a phase will take still, by the pace that it has had."""

from __future__ import annotations

from shoal.clock import Clock


class TimeLeft:
    """The pace of one phase at a time; `observe` is told of its progress."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._phase = ""
        self._first = 0
        self._began_s = 0.0

    def observe(self, phase: str, done: int, total: int) -> float | None:
        """Seconds that are left of the phase; None as long as nothing of it was seen being done."""
        now = self._clock.monotonic()
        if phase != self._phase:
            self._phase, self._first, self._began_s = phase, done, now
        if done <= self._first:
            return None
        return (now - self._began_s) / (done - self._first) * (total - done)
