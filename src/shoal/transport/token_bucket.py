"""Limits on rates: bytes that a node sends, and what each peer or host may ask of it."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

from shoal.clock import Clock

K = TypeVar("K", bound=Hashable)


class TokenBucket:
    """Refilled with `per_s` tokens a second, up to `burst`; full at first."""

    def __init__(self, per_s: float, burst: float, clock: Clock) -> None:
        self._per_s = per_s
        self._burst = burst
        self._clock = clock
        self._used = 0.0  # as of `_at`; more than the burst is a debt
        self._at = clock.monotonic()

    def try_take(self, tokens: float = 1.0) -> bool:
        """Whether there were as many tokens; they are taken then."""
        self._refill()
        granted = self._used + tokens <= self._burst
        if granted:
            self._used += tokens
        return granted

    def give_back(self, tokens: float = 1.0) -> None:
        """What was taken was not used."""
        self._refill()
        self._used = max(0.0, self._used - tokens)

    @property
    def used(self) -> float:
        """Tokens that were taken and are not back yet."""
        self._refill()
        return self._used

    def wait_s(self, tokens: float = 1.0) -> float:
        """Seconds until `try_take` may succeed; 0 if it would now."""
        self._refill()
        return max(0.0, self._used + tokens - self._burst) / self._per_s

    def owe(self, tokens: float = 1.0) -> float:
        """Take tokens, more than `burst` if need be; seconds until they were there."""
        wait_s = self.wait_s(tokens)
        self._used += tokens
        return wait_s

    async def take(self, tokens: float) -> None:
        """Take tokens, more than `burst` if need be, and wait until they were there; in the order of the calls."""
        wait_s = self.owe(tokens)
        if wait_s > 0:
            await self._clock.sleep(wait_s)

    def _refill(self) -> None:
        now = self._clock.monotonic()
        self._used = max(0.0, self._used - (now - self._at) * self._per_s)
        self._at = now


class TokenBuckets(Generic[K]):
    """A bucket for each source; beyond `max_sources` the one that asked longest ago is forgotten."""

    def __init__(self, per_s: float, burst: float, clock: Clock, max_sources: int) -> None:
        self._per_s = per_s
        self._burst = burst
        self._clock = clock
        self._max_sources = max_sources
        self._buckets: dict[K, TokenBucket] = {}

    def of(self, source: K, times: int = 1) -> TokenBucket:
        """The bucket of a source; a new one is so many times as large."""
        bucket = self._buckets.pop(source, None) or TokenBucket(times * self._per_s, times * self._burst, self._clock)
        if len(self._buckets) >= self._max_sources:
            del self._buckets[next(iter(self._buckets))]
        self._buckets[source] = bucket
        return bucket

    def used(self, source: K) -> float:
        """Tokens that this source has taken and that are not back yet."""
        bucket = self._buckets.get(source)
        return 0.0 if bucket is None else bucket.used

    def try_take(self, source: K) -> bool:
        """Whether this source had a token, which is taken then."""
        return self.of(source).try_take()
