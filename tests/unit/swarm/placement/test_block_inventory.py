"""What a server has on its disk and fetches next."""

from __future__ import annotations

import pytest

from shoal.swarm.placement.block_inventory import BlockInventory
from shoal.types import Span


def test_a_goal_comes_first_then_what_is_near() -> None:
    """Until so many blocks are there."""
    inventory = BlockInventory(10, 5)
    inventory.add(range(4, 6))
    assert inventory.next_block(Span(4, 6), Span(8, 10)) == 8
    order = []
    while (block := inventory.next_block(Span(4, 6), None)) is not None:
        order.append(block)
        inventory.add([block])
    assert order == [3, 6, 2]
    assert inventory.next_block(Span(4, 6), Span(5, 10)) == 7
    assert inventory.spans() == (Span(2, 7),)


def test_only_the_longest_runs_are_told() -> None:
    """A record has room for so many."""
    inventory = BlockInventory(20, 0)
    inventory.add([0, 2, 4, 6, 8, 9, 12, 13, 14])
    assert inventory.spans() == (Span(0, 1), Span(2, 3), Span(8, 10), Span(12, 15))
    assert inventory.lacks(Span(8, 12)) == [10, 11]


def test_how_long_a_block_takes() -> None:
    """The first one counts whole, later ones a fifth."""
    inventory = BlockInventory(10, 5)
    assert inventory.fetch_s == 0.0
    for seconds, shown in ((10.0, 10.0), (20.0, 12.0), (2.0, 10.0)):
        inventory.fetched_in(seconds)
        assert inventory.fetch_s == pytest.approx(shown)
