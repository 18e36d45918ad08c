"""Scales of a group: on the format's grid, and with little error."""

from __future__ import annotations

import pytest
import torch

from shoal.model.quant.packed_matrix import squared_scales, unit_of
from shoal.quantize.row_groups import WIDTHS
from shoal.quantize.scale_search import codes_of, search_scales, weighted_error


def rows(seed: int, inputs: int = 64, outputs: int = 48, size: float = 0.02) -> torch.Tensor:
    """Normal weights whose outputs differ in size."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.rand(outputs, generator=generator) + 0.3
    return size * spread * torch.randn(inputs, outputs, generator=generator)


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("size", [3e-6, 0.0004, 0.02, 30.0])
def test_scales_are_on_the_grid(bits: int, size: float) -> None:
    """Those of the steps and the largest scale, subnormal units among them."""
    found = search_scales(rows(1, size=size), torch.ones(64), bits)
    assert found.top.dtype == torch.float16
    assert torch.equal(squared_scales(found.steps, unit_of(found.top)), found.scales)
    assert int(found.steps.max()) <= 15


@pytest.mark.parametrize("bits", WIDTHS)
def test_the_largest_weight_alone_is_no_better(bits: int) -> None:
    """Than the scale that clips nothing, without the grid: a search that clips is better at few bits, and near it at many."""
    some, weights = rows(2), torch.rand(64, generator=torch.Generator().manual_seed(3)) + 0.1
    found = search_scales(some, weights, bits)
    plain = some.abs().amax(0) / ((1 << (bits - 1)) - 0.5)
    error = weighted_error(some, weights, found.scales, bits).sum()
    assert error < weighted_error(some, weights, plain, bits).sum() * (0.8 if bits < 4 else 1.25)


def test_inputs_that_count_more_are_nearer() -> None:
    """An input of a thousand times the weight has less error than it has without."""
    some = rows(4)
    even, uneven = torch.ones(64), torch.ones(64)
    uneven[5] = 1000.0

    def error(weights: torch.Tensor) -> float:
        scales = search_scales(some, weights, 2).scales
        return float((codes_of(some[5], scales, 2) * scales - some[5]).square().sum())

    assert error(uneven) < error(even)


def test_zeros_stay_zeros() -> None:
    """A group of zeros, and an output of zeros among others."""
    assert not search_scales(torch.zeros(32, 8), torch.ones(32), 4).scales.isnan().any()
    some = rows(6)
    some[:, 3] = 0.0
    scales = search_scales(some, torch.ones(64), 3).scales
    assert not codes_of(some, scales, 3)[:, 3].any()
