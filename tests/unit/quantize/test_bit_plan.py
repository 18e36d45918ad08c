"""Bits for each layer under a target."""

from __future__ import annotations

import pytest

from shoal.errors import UsageError
from shoal.quantize.bit_plan import HEAD_SHARES, check_target, plan_bits
from shoal.quantize.block_layers import QuantizedLayer
from shoal.quantize.layer_options import LayerOption, layer_options
from shoal.quantize.row_groups import WIDTHS, MatrixShape, by_shares, float_bits, stored_bits

LAYERS = [QuantizedLayer(f"l{number}", "up", MatrixShape(256, 96)) for number in range(12)]
ODD = QuantizedLayer("odd", "down", MatrixShape(40, 64))


def options(sensitivities: list[float]) -> list[list[LayerOption]]:
    """Errors that fall by four with each bit, of layers that matter more or less."""
    found = []
    for layer, sensitivity in zip(LAYERS, sensitivities, strict=True):
        table = [[sensitivity * 4.0**-bits / (group + 1) for bits in WIDTHS] for group in range(4)]
        found.append(layer_options(layer.shape, {64: table}))
    return found


@pytest.mark.parametrize("target", [2.5, 3.0, 3.5, 4.0, 5.0, 6.5])
def test_real_bits_are_within_a_per_cent_of_the_target(target: float) -> None:
    """And never above it; what the plan says is what its groups cost."""
    plan = plan_bits(LAYERS, options([4.0**number for number in range(12)]), target)
    bits = sum(stored_bits(plan.groups[layer.key], layer.shape) for layer in LAYERS)
    assert plan.bits_per_weight == bits / sum(layer.shape.weights for layer in LAYERS)
    assert 0.99 * target <= plan.bits_per_weight <= target
    assert plan.bound <= plan.error


def test_layers_that_matter_more_have_more_bits() -> None:
    """In order."""
    plan = plan_bits(LAYERS, options([4.0**number for number in range(12)]), 4.0)
    costs = [stored_bits(plan.groups[layer.key], layer.shape) for layer in LAYERS]
    assert costs == sorted(costs)
    assert costs[0] < costs[-1]


def test_layers_that_stay_in_fp16_count_with_that() -> None:
    """What the others may take is less."""
    plan = plan_bits([*LAYERS, ODD], options([1.0] * 12), 4.0)
    held = sum(stored_bits(plan.groups[layer.key], layer.shape) for layer in LAYERS)
    weights = sum(layer.shape.weights for layer in [*LAYERS, ODD])
    assert plan.bits_per_weight == (held + float_bits(ODD.shape)) / weights <= 4.0
    assert ODD.key not in plan.groups


def test_a_target_that_is_too_low_is_refused() -> None:
    """With the least that there is."""
    with pytest.raises(UsageError, match=r"at least 2\.3\d\d"):
        check_target(LAYERS, 2.3)
    with pytest.raises(UsageError, match="what was measured takes more"):
        plan_bits(LAYERS, options([1.0] * 12), 2.38)
    check_target(LAYERS, 2.38)


@pytest.mark.parametrize("bits", HEAD_SHARES)
def test_heads_have_the_published_sizes(bits: int) -> None:
    """Real bits per weight at 4,096 inputs, as ExLlama's converter has them."""
    shares, sizes = HEAD_SHARES[bits]
    shape = MatrixShape(4096, 128_000)
    published = {2: 2.74, 3: 3.28, 4: 4.44, 5: 5.19, 6: 6.34, 8: 8.03}
    assert stored_bits(by_shares(4096, shares, sizes), shape) / shape.weights == pytest.approx(
        published[bits], abs=0.01
    )
