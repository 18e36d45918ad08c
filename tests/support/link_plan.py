"""What emulated paths are like, and how that changes while they are in use."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, replace
from random import Random

from shoal.types import PeerId

PACKET_BYTES = 1400
RETRANSMIT_S = 0.2
"""What a lost packet costs at least, as with Linux's TCP; at most a round trip where that is longer."""

MAX_IN_FLIGHT_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class EmulatedLink:
    """What happens to bytes on their way from one node to another; `jitter_s` is the most that chance adds."""

    delay_s: float = 0.0
    jitter_s: float = 0.0
    rate_bytes_s: float = math.inf
    loss: float = 0.0
    up: bool = True

    def travel_s(self, size_bytes: int, rng: Random) -> float:
        """How long `size_bytes` take once they have left; lost packets are sent again, so nothing is missing."""
        retransmissions, chance = 0, 1.0 - (1.0 - self.loss) ** math.ceil(size_bytes / PACKET_BYTES)
        while chance and rng.random() < chance:
            retransmissions, chance = retransmissions + 1, self.loss
        return (
            self.delay_s
            + (rng.random() * self.jitter_s if self.jitter_s else 0.0)
            + retransmissions * max(RETRANSMIT_S, 2 * self.delay_s)
        )

    @property
    def in_flight_bytes(self) -> float:
        """What fits on the way before the sender's own buffer fills."""
        return min(self.rate_bytes_s * self.delay_s, MAX_IN_FLIGHT_BYTES) if self.delay_s else 0.0


class LinkPlan:
    """All links of a network by (from, to); a change counts from now on, also for what is on its way."""

    def __init__(self, default: EmulatedLink | None = None) -> None:
        self._default = default or EmulatedLink()
        self._links: dict[tuple[PeerId, PeerId], EmulatedLink] = {}
        self._free_at: dict[tuple[PeerId, PeerId], float] = {}
        self._changed = asyncio.Event()

    def link(self, source: PeerId, target: PeerId) -> EmulatedLink:
        """The link as it is now."""
        return self._links.get((source, target), self._default)

    def set(self, source: PeerId, target: PeerId, link: EmulatedLink, both: bool = True) -> None:
        """Change a link, by default in both directions."""
        self._links[source, target] = link
        if both:
            self._links[target, source] = link
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def partition(self, source: PeerId, target: PeerId, both: bool = True) -> None:
        """Let bytes stall until `heal`; new dials get no answer."""
        self._switch(source, target, both, up=False)

    def heal(self, source: PeerId, target: PeerId, both: bool = True) -> None:
        """Undo `partition`: what stalled goes on."""
        self._switch(source, target, both, up=True)

    def _switch(self, source: PeerId, target: PeerId, both: bool, up: bool) -> None:
        self.set(source, target, replace(self.link(source, target), up=up), both=False)
        if both:
            self.set(target, source, replace(self.link(target, source), up=up), both=False)

    async def until_up(self, source: PeerId, target: PeerId) -> None:
        """Wait while the link is partitioned."""
        while not self.link(source, target).up:
            await self._changed.wait()

    def departure(self, source: PeerId, target: PeerId, size_bytes: int, now: float) -> float:
        """When the last of `size_bytes` has left the sender; all channels of a link share its rate."""
        start = max(now, self._free_at.get((source, target), now))
        left = start + size_bytes / self.link(source, target).rate_bytes_s
        self._free_at[source, target] = left
        return left
