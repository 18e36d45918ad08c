"""Which changes of a matrix leave its codes as they are."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from shoal.model.quant.output_changes import outputs_changed
from tests.support import packed_matrices

MATRIX = packed_matrices.mixed(12, 96)

MOVES: dict[str, Callable[[Tensor], Tensor]] = {
    "nothing": lambda one: one,
    "some outputs": lambda one: one[3:7],
    "heads of pairs": lambda one: one.reshape(2, 3, 2, -1).transpose(1, 2).reshape(12, -1),
    "one output twice": lambda one: one[torch.tensor([5, 5, 0])],
}
OTHERS: dict[str, Callable[[Tensor], Tensor]] = {
    "inputs moved": lambda one: one.flip(1),
    "inputs cut": lambda one: one[:, :50],
    "turned around": lambda one: one.T.contiguous(),
    "stacked": lambda one: one.reshape(3, 4, -1),
    "numbers changed": lambda one: one + 1,
    "numbers scaled": lambda one: one * 0.5,
    "outputs of several": lambda one: torch.cat([one[:6, :48], one[6:, :48]], 1),
}


@pytest.mark.parametrize("name", MOVES)
def test_outputs_are_moved(name: str) -> None:
    """The matrix stands for what the change makes of its floats, bit for bit."""
    changed = outputs_changed(MATRIX, MOVES[name])
    assert changed is not None
    assert torch.equal(changed.dequantized(), MOVES[name](MATRIX.dequantized()))


@pytest.mark.parametrize("name", OTHERS)
def test_other_changes_are_none_of_codes(name: str) -> None:
    """They are made with floats."""
    assert outputs_changed(MATRIX, OTHERS[name]) is None
