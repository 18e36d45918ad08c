"""Rounding with error feedback."""

from __future__ import annotations

import pytest
import torch

from shoal.errors import CheckpointError
from shoal.quantize.hessian import DAMPING, factored, without_feedback
from shoal.quantize.rounding import output_error, round_matrix
from shoal.quantize.row_groups import WIDTHS, RowGroup, uniform
from tests.unit.quantize.test_hessian import hessian


def weight(outputs: int = 40, inputs: int = 96, seed: int = 0) -> torch.Tensor:
    """[outputs, inputs]."""
    return 0.05 * torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bits", WIDTHS)
def test_feedback_beats_rounding_to_nearest(bits: int) -> None:
    """Over inputs that hang together, at each width."""
    given, matrix, groups = hessian(96), weight(), uniform(96, bits, 32)
    fed = round_matrix(matrix, factored(given), groups).dequantized()
    nearest = round_matrix(matrix, without_feedback(given), groups).dequantized()
    assert output_error(matrix - fed, given) < 0.8 * output_error(matrix - nearest, given)


def test_the_error_is_that_of_the_outputs() -> None:
    """As the damped Hessian has it, whatever the mix of widths."""
    given, matrix = hessian(96), weight()
    rounded = round_matrix(matrix, factored(given), (RowGroup(5, 32), RowGroup(3, 32), RowGroup(2, 32)))
    damped = given + DAMPING * given.diagonal().mean() * torch.eye(96)
    assert rounded.error == pytest.approx(output_error(matrix - rounded.dequantized(), damped), rel=1e-2)


def test_eight_bits_are_near() -> None:
    """Within a step and a half of a group's largest weight over 127."""
    matrix = weight()
    rounded = round_matrix(matrix, factored(hessian(96)), uniform(96, 8, 32)).dequantized()
    assert float((rounded - matrix).abs().max()) < 2.5 * float(matrix.abs().max()) / 127


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), 1e5])
def test_weights_that_fp16_cannot_hold_are_refused(wrong: float) -> None:
    """Before anything is rounded."""
    matrix = weight()
    matrix[1, 2] = wrong
    with pytest.raises(CheckpointError, match="cannot be quantized"):
        round_matrix(matrix, factored(hessian(96)), uniform(96, 4, 32))
