"""A limit on bytes per second, shared by everything that a node sends."""

from __future__ import annotations

from shoal.clock import Clock

BURST_S = 0.1


class TokenBucket:
    """A token bucket of `bytes_per_s`, with a burst of a tenth of a second."""

    def __init__(self, bytes_per_s: float, clock: Clock) -> None:
        self._rate = bytes_per_s
        self._clock = clock
        self._free_at = clock.monotonic()

    async def take(self, size_bytes: int) -> None:
        """Wait until `size_bytes` may be sent; callers are served in the order in which they came."""
        now = self._clock.monotonic()
        self._free_at = max(self._free_at, now - BURST_S) + size_bytes / self._rate
        wait_s = self._free_at - now
        if wait_s > 0:
            await self._clock.sleep(wait_s)
