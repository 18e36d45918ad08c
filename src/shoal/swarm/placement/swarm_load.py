"""Which blocks a server should hold, as a pure function of a snapshot of records.

A server computes so many block·rows a second, whatever it holds: with n blocks it gives each of them an n-th. A block's
*strength* is the sum of what its servers give it, in rows/s, and a swarm is as fast as its weakest block. Servers are counted
where they will be: announced moves at their goal, joining servers (draining, with a `next_span`) too, leaving ones nowhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from shoal.swarm.directory.records import ServerRecord
from shoal.types import PeerId, Span

Strengths = npt.NDArray[np.float64]
"""Rows/s through each block."""

Counts = npt.NDArray[np.int64]
"""Servers of each block."""

RISK = 0.7
"""How much of a block's strength is not counted on if a single server holds it; squared for two, and so on."""
DEFAULT_BLOCK_ROWS_PER_S = 500.0
"""What a server is taken for when nobody has measured itself."""
WEAKEST_SHARE = 0.01
"""Strengths below this share of the mean count as this, so that a missing block is bad but finite."""


class ServerLoad(msgspec.Struct, frozen=True):
    """What placement needs of a record: where a server will be, what it serves now, what it can do.

    `max_blocks` 0: its blocks were chosen by its owner, and it never moves. A goal elsewhere without `moving` is a plan's, and
    not yet announced. `fetch_s`: seconds that a block takes to fetch that is not `on_disk`. `joining`: it has not served
    yet, and may be long in coming.
    """

    peer: PeerId
    goal: Span
    serves: Span | None
    moving: bool
    block_rows_per_s: float
    max_blocks: int
    on_disk: tuple[Span, ...] = ()
    fetch_s: float = 0.0
    joining: bool = False

    @property
    def share(self) -> float:
        """Rows/s that each of its blocks gets."""
        return self.block_rows_per_s / len(self.goal)

    @property
    def stays(self) -> bool:
        """Whether it serves and has not announced that it will stop."""
        return self.serves is not None and not self.moving

    @property
    def planned(self) -> bool:
        """Whether a plan has it move, and it has not announced that yet."""
        return self.stays and self.goal != self.serves


def holders(num_blocks: int, records: Iterable[ServerRecord]) -> list[ServerLoad]:
    """The servers that hold, or will hold, blocks of a model, by node id.

    The rate is the prefill's, which does not depend on how many sessions happen to share a step; servers that have not
    measured it count as the median of those that have.
    """
    sound = [record for record in records if 0 <= _goal(record).start < _goal(record).stop <= num_blocks]
    kept = sorted((record for record in sound if not record.draining or record.next_span), key=lambda one: one.peer)
    rates = [_rate(record) for record in kept]
    known = sorted(rate for rate in rates if rate)
    usual = known[len(known) // 2] if known else DEFAULT_BLOCK_ROWS_PER_S
    return [
        ServerLoad(
            PeerId(record.peer),
            _goal(record),
            None if record.draining else record.span,
            record.next_span is not None,
            rate or usual,
            max(record.max_blocks, len(_goal(record))) if record.max_blocks else 0,
            record.on_disk,
            record.fetch_s if 0 <= record.fetch_s < math.inf else 0.0,
            record.draining and record.next_span == record.span,
        )
        for record, rate in zip(kept, rates, strict=True)
    ]


def _goal(record: ServerRecord) -> Span:
    return record.next_span or record.span


def _rate(record: ServerRecord) -> float:
    rate = record.prefill_rows_per_s * len(record.span)
    return min(rate, 1e12) if math.isfinite(rate) and rate > 0 else 0.0


class SwarmLoad:
    """The servers of a swarm and what they add up to, kept up to date one server at a time.

    `strength` [num_blocks]: rows/s of each block, with every server where it will be; `holders` [num_blocks]: how many these
    are. `stayers` [num_blocks]: how many serve a block now and have not announced that they will stop.
    """

    def __init__(self, num_blocks: int, held: Iterable[ServerLoad] = ()) -> None:
        self.num_blocks = num_blocks
        self.held: dict[PeerId, ServerLoad] = {}
        self.strength: Strengths = np.zeros(num_blocks)
        self.stayers = np.zeros(num_blocks, np.int64)
        self.holders = np.zeros(num_blocks, np.int64)
        for holder in held:
            self.put(holder)

    def put(self, holder: ServerLoad) -> None:
        """A server is new, or its record is."""
        self.drop(holder.peer)
        self.held[holder.peer] = holder
        self._count(holder, 1)

    def drop(self, peer: PeerId) -> None:
        """A server is gone, if it was there."""
        holder = self.held.pop(peer, None)
        if holder is not None:
            self._count(holder, -1)

    def _count(self, holder: ServerLoad, sign: int) -> None:
        blocks = slice(holder.goal.start, holder.goal.stop)
        self.holders[blocks] += sign
        self.strength[blocks] += sign * holder.share
        self.strength[blocks] *= self.holders[blocks] > 0  # rounding leaves crumbs: where nobody is, there is nothing
        if holder.stays and holder.serves is not None:
            self.stayers[holder.serves.start : holder.serves.stop] += sign

    def without(self, holder: ServerLoad) -> tuple[Strengths, Counts]:
        """Strengths and numbers of holders if one of them were not there."""
        strength, holders = self.strength.copy(), self.holders.copy()
        blocks = slice(holder.goal.start, holder.goal.stop)
        holders[blocks] -= 1
        strength[blocks] = np.where(holders[blocks] > 0, np.maximum(strength[blocks] - holder.share, 0), 0.0)
        return strength, holders


def strengths(num_blocks: int, held: Iterable[ServerLoad]) -> Strengths:
    """[num_blocks] rows/s of each block, with every server where it will be."""
    return SwarmLoad(num_blocks, held).strength


def best_span(
    scene: SwarmLoad, count: int, block_rows_per_s: float, fewest: int = 1, but: ServerLoad | None = None
) -> Span:
    """Where a server helps the weakest blocks most: the span of `fewest` to `count` blocks that leaves the least weakness.

    Fewer blocks get a larger share each. `but` is left out of the scene. Ties go to the longer span, then to the first.
    """
    count = min(count, scene.num_blocks)
    strength, holders = (scene.strength, scene.holders) if but is None else scene.without(but)
    scale = max(float(strength.mean()), block_rows_per_s / len(strength))
    before = _weakness(worth(strength, holders) / scale)
    trust = (1 - RISK ** (holders + 1)) / scale
    best, chosen = -math.inf, Span(0, count)
    for length in range(count, min(fewest, count) - 1, -1):
        gain = before - _weakness((strength + block_rows_per_s / length) * trust)
        gains = np.convolve(gain, np.ones(length), "valid")
        start = int(gains.argmax())
        if gains[start] > best * (1 + 1e-9):
            best, chosen = float(gains[start]), Span(start, start + length)
    return chosen


def worth(strength: Strengths, holders: Counts) -> Strengths:
    """Strengths, less what may be lost: a block that few servers hold is weaker than it looks."""
    return strength * (1 - RISK**holders)


def _weakness(relative: Strengths) -> Strengths:
    """The eighth power of the reciprocal: nearly only the least strength counts, but ties and seconds do too."""
    square = np.maximum(relative, WEAKEST_SHARE) ** 2
    weakness: Strengths = 1 / (square * square) ** 2
    return weakness


def choose_span(
    num_blocks: int,
    count: int,
    records: Iterable[ServerRecord],
    block_rows_per_s: float | None = None,
    fewest: int = 1,
) -> Span:
    """Where a joining server with memory for `count` blocks helps most, if it takes at least `fewest`.

    A server that has not measured itself (None) counts as the median of the others.
    """
    held = holders(num_blocks, records)
    return best_span(SwarmLoad(num_blocks, held), count, block_rows_per_s or usual_rate(held), fewest)


def usual_rate(held: Sequence[ServerLoad]) -> float:
    """The median of the servers' block·rows/s."""
    rates = sorted(holder.block_rows_per_s for holder in held)
    return rates[len(rates) // 2] if rates else DEFAULT_BLOCK_ROWS_PER_S
