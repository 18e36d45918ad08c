"""Factors of layers; experts that calibration hardly visits are never worse than rounded to nearest."""

from __future__ import annotations

import pytest
import torch

from shoal.quantize.block_layers import QuantizedLayer
from shoal.quantize.hessian import InputStatistics, without_feedback
from shoal.quantize.layer_factors import factors
from shoal.quantize.rounding import output_error, round_matrix
from shoal.quantize.row_groups import MatrixShape, uniform

INPUTS, OUTPUTS, TOKENS = 64, 48, 4000


def inputs(rows: int, seed: int, size: float = 1.0) -> torch.Tensor:
    """Rows that hang together, the same way for every seed."""
    mixed = torch.randn(INPUTS, INPUTS, generator=torch.Generator().manual_seed(1))
    return size * torch.randn(rows, INPUTS, generator=torch.Generator().manual_seed(seed)) @ mixed


def layer(index: int) -> QuantizedLayer:
    """The down matrix of an expert."""
    return QuantizedLayer(f"experts.{index}.w2", f"experts.{index}.down", MatrixShape(INPUTS, OUTPUTS))


@pytest.mark.parametrize("visits", [0, 1, 3, 10, 40, 63])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_rare_experts_are_no_worse_than_rounded_to_nearest(visits: int, bits: int) -> None:
    """By the error of their outputs on rows that calibration did not see."""
    usual, rare = InputStatistics(INPUTS), InputStatistics(INPUTS)
    usual.add(inputs(TOKENS, 2))
    rare.add(inputs(visits, 3))
    layers = [layer(0), layer(1)]
    found = dict(factors(layers, {"experts.0.down": usual, "experts.1.down": rare}, TOKENS))
    unseen = inputs(TOKENS, 4)
    hessian = unseen.T @ unseen / TOKENS
    weight = 0.05 * torch.randn(OUTPUTS, INPUTS, generator=torch.Generator().manual_seed(5))
    groups = uniform(INPUTS, bits, 32)
    plain = round_matrix(weight, without_feedback(torch.eye(INPUTS)), groups).dequantized()
    ours = round_matrix(weight, found[layers[1]], groups).dequantized()
    assert output_error(weight - ours, hessian) <= 1.1 * output_error(weight - plain, hessian)
    fed = round_matrix(weight, found[layers[0]], groups).dequantized()
    assert output_error(weight - fed, hessian) < 0.8 * output_error(weight - plain, hessian)


def test_an_expert_without_visits_still_counts_a_little() -> None:
    """So that its bits are not all given to others."""
    usual = InputStatistics(INPUTS)
    usual.add(inputs(TOKENS, 2))
    statistics = {"experts.0.down": usual, "experts.1.down": InputStatistics(INPUTS)}
    found = dict(factors([layer(0), layer(1)], statistics, TOKENS))
    counted = [float(factor.weights.mean()) for factor in found.values()]
    assert 0 < counted[1] < counted[0]


def test_layers_that_share_their_inputs_share_a_factor() -> None:
    """It is made once."""
    seen = InputStatistics(INPUTS)
    seen.add(inputs(200, 2))
    layers = [QuantizedLayer(role, role, MatrixShape(INPUTS, OUTPUTS)) for role in ("q", "k", "v")]
    found = [factor for _, factor in factors(layers, dict.fromkeys(("q", "k", "v"), seen), 200)]
    assert found[0] is found[1] is found[2]
