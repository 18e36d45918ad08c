"""ExLlama's ladder, as its description has it."""

from __future__ import annotations

import pytest
import torch

from bench.exl2_ladder import ATTENTION, MLP, LadderOption, WidthShares, choose, exl2_scales
from shoal.quantize.row_groups import MatrixShape, by_shares, stored_bits, uniform

LLAMA_7B = {"q": (4096, 4096), "gate": (4096, 11008), "down": (11008, 4096)}
PUBLISHED_ATTENTION = (
    *(2.13, 2.22, 2.43, 2.67, 3.16, 3.17, 4.04, 4.05, 4.09, 4.13),
    *(4.17, 4.19, 4.40, 4.46, 5.38, 5.46, 6.04, 6.63, 8.04),
)
PUBLISHED_MLP = (
    *(2.25, 2.33, 2.60, 2.91, 3.29, 3.37, 3.62, 4.14, 4.20, 4.27),
    *(4.35, 5.25, 5.33, 6.07, 6.30, 6.87, 8.04),
)


def bits(shares: WidthShares, shape: MatrixShape) -> int:
    """Of one layer."""
    return stored_bits(by_shares(shape.inputs, shares.shares, shares.sizes), shape)


def test_options_have_the_published_sizes() -> None:
    """Of Llama 2 7B's attention (q, k, v, o alike) and MLP, to two digits."""
    square = MatrixShape(4096, 4096)
    for (q, v, o), published in zip(ATTENTION, PUBLISHED_ATTENTION, strict=True):
        found = (2 * bits(q, square) + bits(v, square) + bits(o, square)) / (4 * square.weights)
        assert found == pytest.approx(published, abs=0.006)
    wide, down = MatrixShape(4096, 11008), MatrixShape(11008, 4096)
    for (gate, up, last), published in zip(MLP, PUBLISHED_MLP, strict=True):
        found = (bits(gate, wide) + bits(up, wide) + bits(last, down)) / (3 * wide.weights)
        assert found == pytest.approx(published, abs=0.006)


def test_scales_are_near_the_largest_weights() -> None:
    """Steps by an output's largest weight, under one factor from 0.7 to 1.2."""
    rows = torch.randn(64, 32, generator=torch.Generator().manual_seed(1))
    found = exl2_scales(rows, torch.ones(64), 4)
    base = rows.abs().amax(0) / 7.5
    assert int(found.steps.max()) == 15
    assert bool((found.scales / base).max() < 1.2 * 1.15)
    assert bool((found.scales / base).min() > 0.7 * 0.85)


def test_what_is_left_of_the_bits_is_spent() -> None:
    """Modules one step further wherever it fits."""
    groups = {"q": uniform(32, 4, 32)}
    ladder = [LadderOption(groups, cost, error) for cost, error in ((10, 0.5), (20, 0.2), (30, 0.1))]
    assert choose([ladder, ladder], 50) in ([2, 1], [1, 2])
    assert choose([ladder, ladder], 1000) == [2, 2]
    with pytest.raises(ValueError, match="no choice"):
        choose([ladder, ladder], 15)
