"""So many at once, whoever comes: nobody keeps others out by coming often."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)


class Slots(Generic[T]):
    """Entries of several sources, at most `limit`. One more takes the place of the oldest entry of the source that has most.

    Honest entries are through in no time, so the oldest is the one that is waited for in vain.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._sources: dict[T, str] = {}  # by age

    def __len__(self) -> int:
        return len(self._sources)

    def __contains__(self, entry: T) -> bool:
        return entry in self._sources

    def enter(self, entry: T, source: str) -> T | None:
        """Take a place, once; returns the entry that has lost its own, if there was none left."""
        self._sources.setdefault(entry, source)
        if len(self._sources) <= self._limit:
            return None
        counts = Counter(self._sources.values())
        most = max(counts.values())
        oldest = next(one for one, its in self._sources.items() if counts[its] == most)
        del self._sources[oldest]
        return oldest

    def leave(self, entry: T) -> None:
        """Give the place back; harmless for an entry that has none."""
        self._sources.pop(entry, None)
