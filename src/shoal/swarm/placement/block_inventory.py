"""Which blocks a server has on its disk, and which it fetches next. Pure.

Where others may leave at any time, what a server can load without a network decides how long a gap stays open. So a server
uses its idle line to fetch blocks ahead: first those that a plan wants it to serve, then those around its own.
"""

from __future__ import annotations

from collections.abc import Iterable

from shoal.swarm.directory.records import MAX_DISK_SPANS
from shoal.types import Span


class BlockInventory:
    """The blocks of one server's disk. It fetches ahead until it has `ahead` of them."""

    def __init__(self, num_blocks: int, ahead: int) -> None:
        self.blocks: set[int] = set()
        self._fetch_s = 0.0
        self._num_blocks = num_blocks
        self._ahead = ahead

    @property
    def fetch_s(self) -> float:
        """How long a block takes, by those that were fetched last; 0 before the first."""
        return self._fetch_s

    def fetched_in(self, seconds: float) -> None:
        """A block took so long."""
        self._fetch_s = seconds if not self._fetch_s else 0.8 * self._fetch_s + 0.2 * seconds

    def add(self, blocks: Iterable[int]) -> None:
        """These are on the disk now."""
        self.blocks.update(blocks)

    def lacks(self, span: Span) -> list[int]:
        """What of a span is missing."""
        return [block for block in span.blocks() if block not in self.blocks]

    def next_block(self, here: Span, goal: Span | None) -> int | None:
        """What to fetch now: of the goal, else the nearest to the middle of its blocks; None when there is nothing to do."""
        if goal is not None and (missing := self.lacks(goal)):
            return missing[0]
        if len(self.blocks) >= min(self._ahead, self._num_blocks):
            return None
        middle = here.start + here.stop - 1
        rest = (block for block in range(self._num_blocks) if block not in self.blocks)
        return min(rest, key=lambda block: abs(2 * block - middle), default=None)

    def spans(self) -> tuple[Span, ...]:
        """The longest runs of blocks on the disk, at most MAX_DISK_SPANS."""
        runs: list[Span] = []
        for block in sorted(self.blocks):
            if runs and runs[-1].stop == block:
                runs[-1] = Span(runs[-1].start, block + 1)
            else:
                runs.append(Span(block, block + 1))
        return tuple(sorted(sorted(runs, key=len, reverse=True)[:MAX_DISK_SPANS]))
