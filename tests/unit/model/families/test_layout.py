"""Parts of fused tensors, and heads in another order."""

from __future__ import annotations

import torch

from shoal.model.families.layout import expert, grouped, rows, unpaired

NUMBERS = torch.arange(24)


def test_a_range_of_rows() -> None:
    """q, k and v one after the other."""
    assert rows(2, 5)(NUMBERS).tolist() == [2, 3, 4]


def test_parts_of_every_group() -> None:
    """Two groups of two query heads, a key head and a value head, each of three dimensions; of biases and matrices alike."""
    assert grouped(2, 0, 2, 3)(NUMBERS).tolist() == [0, 1, 2, 3, 4, 5, 12, 13, 14, 15, 16, 17]
    assert grouped(2, 2, 3, 3)(NUMBERS).tolist() == [6, 7, 8, 18, 19, 20]
    matrix = torch.stack([NUMBERS, -NUMBERS], 1)
    assert torch.equal(grouped(2, 3, 4, 3)(matrix), matrix[[9, 10, 11, 21, 22, 23]])


def test_neighbouring_pairs_become_halves() -> None:
    """In the turning part of each head only; what was given is left as it is."""
    given = NUMBERS.clone()
    assert unpaired(8, 2, 4)(given)[:16].tolist() == [0, 1, 2, 4, 3, 5, 6, 7, 8, 9, 10, 12, 11, 13, 14, 15]
    assert torch.equal(given, NUMBERS)
    assert unpaired(8, 0, 8, then=rows(8, 16))(given).tolist() == [8, 10, 12, 14, 9, 11, 13, 15]


def test_one_expert_of_a_stack() -> None:
    """Every other output, matrices the other way round."""
    stack = NUMBERS.view(2, 3, 4)
    assert expert(1, 1, 2)(stack).tolist() == [[13, 17, 21], [15, 19, 23]]
    assert expert(1)(NUMBERS.view(2, 12)).tolist() == list(range(12, 24))
