"""Whose handshake is next, and when (docs/concepts/shares.md). Pure: it knows no connections."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, NamedTuple, TypeVar

from shoal.clock import Clock
from shoal.transport.token_bucket import TokenBucket

T = TypeVar("T", bound=Hashable)

HANDSHAKE_SHARE = 0.2
"""The part of its time that an event loop gives to handshakes, for as long as more of them come than that."""

HANDSHAKE_BURST_S = 0.2
"""Seconds of computing that handshakes may save up: a crowd of clients that comes at once does not wait."""


HALF_LIFE_S = 60.0
"""In so many seconds half of what a source has used is forgotten."""

MAX_SOURCES = 4096
"""Sources whose use is remembered; beyond that the one that used something longest ago is forgotten."""


class _Used(NamedTuple):
    """Seconds of computing, as of a moment."""

    seconds: float
    at: float


class HandshakeQueue(Generic[T]):
    """Handshakes that wait for the event loop. Sources stand in line, and in each the oldest goes first.

    Every other turn is the first in line's, so that nobody waits for ever. The turns between are for the source that has used
    least of late: a newcomer passes a crowd. If all turns were, fresh addresses would pass every honest one.
    """

    def __init__(self, clock: Clock, share: float = HANDSHAKE_SHARE, burst_s: float = HANDSHAKE_BURST_S) -> None:
        self._clock = clock
        self._budget = TokenBucket(share, burst_s, clock)
        self._waiting: dict[str, dict[T, None]] = {}  # by source, in line; in each by age
        self._used: dict[str, _Used] = {}  # by when it used something
        self._in_line = True

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def enter(self, entry: T, source: str) -> None:
        """Wait for a turn."""
        self._waiting.setdefault(source, {})[entry] = None

    def leave(self, entry: T, source: str) -> None:
        """Wait no more; harmless for one that does not wait."""
        entries = self._waiting.get(source, {})
        entries.pop(entry, None)
        if not entries:
            self._waiting.pop(source, None)

    def wait_s(self) -> float:
        """Seconds until the next one may begin."""
        return self._budget.wait_s(0.0)

    def next(self) -> T:
        """The one that begins now; its source is the last in line from here on."""
        source = next(iter(self._waiting)) if self._in_line else min(self._waiting, key=self._used_s)
        self._in_line = not self._in_line
        entries = self._waiting.pop(source)
        entry = next(iter(entries))
        del entries[entry]
        if entries:
            self._waiting[source] = entries
        return entry

    def spent(self, source: str, seconds: float) -> None:
        """A handshake of this source has made the event loop compute for so long."""
        self._budget.owe(seconds)
        used_s = self._used_s(source) + seconds
        self._used.pop(source, None)
        self._used[source] = _Used(used_s, self._clock.monotonic())
        if len(self._used) > MAX_SOURCES:
            del self._used[next(iter(self._used))]

    def _used_s(self, source: str) -> float:
        used = self._used.get(source)
        return 0.0 if used is None else used.seconds * 0.5 ** ((self._clock.monotonic() - used.at) / HALF_LIFE_S)
