"""Rounding to nearest on EXL2's grid of scales."""

from __future__ import annotations

import pytest
import torch

from shoal.engine.proof import numbers
from shoal.model.kernels.linears import torch_linear
from shoal.model.kernels.quantized import BITS, GROUP, filled_up, quantize, together
from shoal.model.kernels.tiles import padded
from shoal.model.quant.packed_matrix import PackedMatrix


@pytest.mark.parametrize("bits", BITS)
def test_codes_are_near_and_scales_on_the_grid(bits: int) -> None:
    """Scales are ((i + 1)² · m) in fp16, m the group's largest ÷ 256 in fp16; most weights are within half a step."""
    weight = numbers(1, 50, 150)
    rounded = quantize(weight, bits)
    assert rounded.codes.dtype == torch.uint8
    assert int(rounded.codes.max()) < 1 << bits
    (section,) = rounded.sections
    scales = section.scales.values()
    assert scales.shape == (50, 3)
    for group in range(3):
        column = scales[:, group]
        grid = {
            float((torch.tensor(float(i * i), dtype=torch.float16) * unit).to(torch.float16))
            for unit in _units(weight[:, group * GROUP : (group + 1) * GROUP], bits)
            for i in range(1, 17)
        }
        assert set(column.tolist()) <= grid
    error = (rounded.dequantized() - weight).abs()
    step = scales.repeat_interleave(GROUP, 1)[:, :150]
    assert (error <= step / 2 + 1e-7).float().mean() > (0.98 if bits > 3 else 0.75)
    assert error.norm() < 1.6 * 2.0**-bits * weight.norm()


def _units(group: torch.Tensor, bits: int) -> list[torch.Tensor]:
    most = torch.maximum(group.amax(1) / ((1 << (bits - 1)) - 1), group.amin(1) / -(1 << (bits - 1))).max()
    return [(most / 256).to(torch.float16)]


def test_zeros_and_tiny_weights() -> None:
    """Zeros stay zeros, and weights whose scale underflows become zeros: never NaN."""
    for weight in (torch.zeros(3, 70), torch.full((3, 70), 1e-12), torch.full((3, 70), 1e-6)):
        values = quantize(weight, 4).dequantized()
        assert values.isfinite().all()
        assert (values - weight).abs().max() <= 1e-6


def test_other_widths_are_refused() -> None:
    """There are no codes of 7 bits."""
    with pytest.raises(ValueError, match="7 bits"):
        quantize(torch.zeros(2, 2), 7)


def test_matrices_are_filled_up() -> None:
    """Codes as floats are: with zeros."""
    first = quantize(numbers(1, 5, 70), 4)
    wide = filled_up(first, out_features=20, in_features=130)
    assert isinstance(wide, PackedMatrix)
    assert wide.shape == (20, 130)
    assert torch.equal(wide.dequantized()[:5, :70], first.dequantized())
    assert not wide.dequantized()[5:].any()
    assert not wide.dequantized()[:, 70:].any()
    assert filled_up(first, 5, 70) is first


def test_floats_of_one_layer_are_one_matrix() -> None:
    """Where they have one dtype."""
    first, second = numbers(1, 5, 70), numbers(2, 6, 70)
    assert [one.shape for one in together([first, second])] == [(11, 70)]
    assert len(together([first, second.to(torch.bfloat16)])) == 2
    assert len(together([first, quantize(second, 4)])) == 2
    assert together(first) == [first]


def test_torch_computes_with_codes() -> None:
    """The layer for codes gives what a layer of the dequantized weights gives, in a fraction of the memory."""
    weight = quantize(numbers(1, 50, 150), 4)
    coded, plain = torch_linear(weight), torch_linear(weight.dequantized())
    rows = numbers(2, 8, 150)
    assert torch.equal(coded(rows), plain(rows))
    assert coded(rows).shape == (8, padded(50))
    assert coded.size_bytes < plain.size_bytes / 3
