"""The one form of a quantized matrix."""

from __future__ import annotations

import pytest
import torch

from shoal.model.quant.packed_matrix import Levels, PackedMatrix, Section


def matrix(outputs: int = 3, dtype: torch.dtype = torch.float32) -> PackedMatrix:
    """Two sections: one with a zero point, one with steps and minima; a stored order."""
    codes = torch.arange(outputs * 6, dtype=torch.uint8).view(outputs, 6) % 8
    first = Section(4, 3, 2, Levels(torch.ones(outputs, 2, dtype=torch.float16)), zero=4)
    steps = Levels(torch.full((outputs, 1), 0.5), torch.full((outputs, 1), 3, dtype=torch.uint8))
    second = Section(2, 2, 2, steps, minima=Levels(torch.ones(outputs, 1)))
    return PackedMatrix(codes, (first, second), torch.tensor([5, 4, 3, 2, 1, 0]), dtype)


def test_weights_by_their_definition() -> None:
    """(code − zero) · scale − minimum, each where its stored input belongs."""
    codes = matrix().codes.float()
    stored = torch.cat([codes[:, :4] - 4, codes[:, 4:] * 1.5 - 1], 1)
    assert torch.equal(matrix().dequantized(), stored.flip(1))


def test_some_outputs_are_those_of_the_whole() -> None:
    """However many there are at once: more than are made at a time, too."""
    whole = matrix(3000)
    found = torch.cat([whole.outputs(first, first + 7).dequantized() for first in range(0, 3000, 7)])
    assert torch.equal(found, whole.dequantized())


def test_a_weight_is_rounded_at_last() -> None:
    """To the format's dtype."""
    assert matrix(dtype=torch.bfloat16).dequantized().dtype == torch.bfloat16


def test_a_squared_step_is_rounded_as_in_fp16() -> None:
    """A unit may be subnormal there."""
    unit = torch.tensor([[3 * 2.0**-24]], dtype=torch.float16)
    level = Levels(unit, torch.tensor([[0], [15]], dtype=torch.uint8), squared=True)
    assert level.values().flatten().tolist() == [3 * 2.0**-24, 768 * 2.0**-24]


def test_a_table_instead_of_a_zero_point() -> None:
    """Codes name its numbers."""
    section = Section(2, 2, 2, Levels(torch.tensor([[2.0]])), table=(-5, 0, 1, 7))
    packed = PackedMatrix(torch.tensor([[3, 0]], dtype=torch.uint8), (section,))
    assert packed.dequantized().tolist() == [[14.0, -10.0]]


def test_bits_of_a_weight() -> None:
    """Codes with their own width, and all that stands beside them."""
    beside = 2 * 2 * 16 / 2 + 32 + 8 + 32  # of an output: two fp16 scales, a unit, a step, a minimum
    assert matrix(1000).bits_per_weight == pytest.approx((4 * 3 + 2 * 2 + beside) / 6 + 32 / 1000, rel=1e-6)
