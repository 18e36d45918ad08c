"""How many blocks a server holds, and in how many bits, where its owner names nothing but the memory: pure arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from shoal.errors import CapacityError

USEFUL_PARTS = 4
"""A span is useful that is at least so great a part of its model: so many servers like it make a route."""

LEAST_BITS = 4
"""Of codes that are chosen without being asked for. Fewer lose much where nothing was measured."""


class Width(NamedTuple):
    """A form in which blocks may be held: codes of `bits` (None: as the checkpoint has them), and a block's bytes then."""

    bits: int | None
    block_bytes: int


class MemoryPlan(NamedTuple):
    """What was chosen."""

    num_blocks: int
    width: Width

    @property
    def weight_bytes(self) -> int:
        """Memory that the weights take."""
        return self.num_blocks * self.width.block_bytes


def plan_memory(widths: Sequence[Width], num_blocks: int, weight_bytes: int, wanted: int | None = None) -> MemoryPlan:
    """The first of `widths`, which stand from the most bits down, at which a useful span of a model of `num_blocks` fits.

    The span is then as long as fits into `weight_bytes`, or `wanted` blocks. Where no useful span fits, the last width is
    taken, so that more memory never leads to fewer bits. Raises CapacityError where not one block fits, or not as many as are
    wanted.
    """
    useful = min(wanted or -(-num_blocks // USEFUL_PARTS), num_blocks)
    plans = [MemoryPlan(min(wanted or num_blocks, num_blocks, weight_bytes // one.block_bytes), one) for one in widths]
    best = next((plan for plan in plans if plan.num_blocks >= useful), plans[-1])
    least = useful if wanted else 1
    if best.num_blocks < least:
        needed = least * widths[-1].block_bytes
        count = f"{least} blocks need" if least > 1 else "one block needs"
        raise CapacityError(f"{weight_bytes / 1e9:.3g} GB for weights are too little: {count} {needed / 1e9:.3g} GB")
    return best
