"""Factors of layers; experts that calibration hardly visits are never worse than rounded to nearest."""

from __future__ import annotations

import pytest
import torch

from shoal.quantize.block_layers import QuantizedLayer
from shoal.quantize.hessian import InputStatistics, factored, to_nearest
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
def test_rare_experts_are_never_worse_than_rounded_to_nearest(visits: int, bits: int) -> None:
    """They are rounded to nearest, weight for weight: in the same groups, by a search in which all inputs count alike."""
    usual, rare = InputStatistics(INPUTS), InputStatistics(INPUTS)
    usual.add(inputs(TOKENS, 2))
    rare.add(inputs(visits, 3))
    layers = [layer(0), layer(1)]
    found = dict(factors(layers, {"experts.0.down": usual, "experts.1.down": rare}, TOKENS))
    weight = 0.05 * torch.randn(OUTPUTS, INPUTS, generator=torch.Generator().manual_seed(5))
    groups, factor = uniform(INPUTS, bits, 32), found[layers[1]]
    nearest = factor._replace(upper=torch.eye(INPUTS))
    ours = round_matrix(weight, factor, groups).dequantized()
    assert torch.equal(ours, round_matrix(weight, nearest, groups).dequantized())


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_feedback_from_few_visits_would_be_worse(bits: int) -> None:
    """On rows that calibration did not see; from many visits it is better."""
    unseen = inputs(TOKENS, 4)
    hessian = unseen.T @ unseen / TOKENS
    weight = 0.05 * torch.randn(OUTPUTS, INPUTS, generator=torch.Generator().manual_seed(5))

    def error(visits: int) -> float:
        seen, few = inputs(visits, 3), InputStatistics(INPUTS)
        few.add(seen)
        given = factored(few.products / visits)
        return output_error(weight - round_matrix(weight, given, uniform(INPUTS, bits, 32)).dequantized(), hessian)

    plain = to_nearest(torch.ones(INPUTS))
    nearest = output_error(weight - round_matrix(weight, plain, uniform(INPUTS, bits, 32)).dequantized(), hessian)
    assert error(10) > nearest
    assert error(TOKENS) < 0.8 * nearest


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
