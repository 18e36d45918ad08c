"""Span length and bits from a memory, by example; tests/property/test_memory_plan.py has what always holds."""

from __future__ import annotations

import pytest

from shoal.errors import CapacityError
from shoal.server.hosting.memory_plan import Width, plan_memory

WIDTHS = [Width(None, 1600), Width(8, 825), Width(4, 425)]


@pytest.mark.parametrize(
    ("memory", "bits", "blocks"),
    [
        (32 * 1600, None, 32),
        (8 * 1600, None, 8),
        (8 * 1600 - 1, 8, 15),
        (8 * 825, 8, 8),
        (8 * 825 - 1, 4, 15),
        (8 * 425 - 1, 4, 7),
        (425, 4, 1),
        (10**9, None, 32),
    ],
)
def test_as_many_bits_as_leave_a_quarter_of_the_model(memory: int, bits: int | None, blocks: int) -> None:
    """Then as many blocks as fit; where no quarter fits, the fewest bits."""
    plan = plan_memory(WIDTHS, 32, memory)
    assert (plan.width.bits, plan.num_blocks) == (bits, blocks)
    assert plan.weight_bytes == blocks * plan.width.block_bytes


@pytest.mark.parametrize(
    ("wanted", "bits", "blocks"), [(2, None, 2), (5, None, 5), (6, 8, 6), (9, 8, 9), (10, 4, 10), (18, 4, 18)]
)
def test_blocks_that_were_asked_for(wanted: int, bits: int | None, blocks: int) -> None:
    """So many and no more, in the most bits at which they fit."""
    plan = plan_memory(WIDTHS, 32, 8000, wanted)
    assert (plan.width.bits, plan.num_blocks) == (bits, blocks)


def test_more_blocks_than_there_are() -> None:
    """Are all there are."""
    assert plan_memory(WIDTHS, 4, 10**6, 9).num_blocks == 4


@pytest.mark.parametrize(("memory", "wanted", "told"), [(424, None, "one block needs"), (8000, 19, "19 blocks need")])
def test_too_little_is_told_with_what_is_needed(memory: int, wanted: int | None, told: str) -> None:
    """Of the form that takes least."""
    with pytest.raises(CapacityError, match=told):
        plan_memory(WIDTHS, 32, memory, wanted)
