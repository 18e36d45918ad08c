"""What holds of every choice of span length and bits."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import CapacityError
from shoal.server.hosting.memory_plan import USEFUL_PARTS, MemoryPlan, Width, plan_memory

SIZES = st.lists(st.integers(1, 10**10), min_size=1, max_size=6, unique=True).map(
    lambda sizes: [Width(index, size) for index, size in enumerate(sorted(sizes, reverse=True))]
)
"""From the most bytes down, as forms stand."""
BLOCKS, MEMORY, WANTED = st.integers(1, 1024), st.integers(1, 10**13), st.none() | st.integers(1, 1100)


def planned(widths: list[Width], blocks: int, memory: int, wanted: int | None) -> MemoryPlan | None:
    """None where nothing fits."""
    try:
        return plan_memory(widths, blocks, memory, wanted)
    except CapacityError:
        return None


@given(SIZES, BLOCKS, MEMORY, WANTED)
def test_a_plan_fits_and_is_as_large_as_fits(widths: list[Width], blocks: int, memory: int, wanted: int | None) -> None:
    """Never above the memory, never more than there is or was asked for; one more block would not fit, nor would more bits."""
    plan = planned(widths, blocks, memory, wanted)
    least = min(wanted or 1, blocks)
    if plan is None:
        assert least * widths[-1].block_bytes > memory
        return
    assert plan.weight_bytes <= memory
    assert least <= plan.num_blocks <= min(wanted or blocks, blocks)
    whole = plan.num_blocks == min(wanted or blocks, blocks)
    assert whole or plan.weight_bytes + plan.width.block_bytes > memory
    useful = min(wanted or -(-blocks // USEFUL_PARTS), blocks)
    for one in widths[: widths.index(plan.width)]:
        assert useful * one.block_bytes > memory


@given(SIZES, BLOCKS, MEMORY, MEMORY, WANTED)
def test_more_memory_is_never_worse(widths: list[Width], blocks: int, less: int, more: int, wanted: int | None) -> None:
    """Never fewer bits for it, and never fewer blocks of as many bits; what fits into less fits into more."""
    small, large = (planned(widths, blocks, memory, wanted) for memory in sorted((less, more)))
    if small is None:
        return
    assert large is not None
    ranks = [widths.index(plan.width) for plan in (large, small)]
    assert ranks[0] <= ranks[1]
    assert ranks[0] < ranks[1] or large.num_blocks >= small.num_blocks
