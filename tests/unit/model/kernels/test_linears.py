"""Linear layers for devices: near the exact ones in 16 bits, and the same in fp32."""

from __future__ import annotations

import pytest
import torch

from shoal.engine.proof import numbers
from shoal.model.kernels.linears import DeviceLinear, PackedLinear, RowLinear, device_linears
from shoal.model.kernels.quantized import quantize

ROWS, WEIGHT, BIAS = numbers(1, 5, 96), numbers(2, 70, 96), numbers(3, 70)
STEP = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
"""Half a step of a number of 1, relative."""


@pytest.mark.parametrize("dtype", STEP)
@pytest.mark.parametrize("bias", [None, BIAS], ids=["plain", "bias"])
def test_sixteen_bits_are_near(device: str, dtype: torch.dtype, bias: torch.Tensor | None) -> None:
    """Rows and product are rounded once each; weights are given in 16 bits and lose nothing."""
    weight = WEIGHT.to(dtype)
    exact = RowLinear(weight, bias)(ROWS)
    linear = DeviceLinear(weight.to(device), None if bias is None else bias.to(device))
    found = linear(ROWS.to(device)).cpu()
    allowed = STEP[dtype] * (RowLinear(weight.abs())(ROWS.abs()) + exact.abs() + 1) * 1.01
    assert found.dtype == torch.float32
    assert ((found - exact).abs() <= allowed).all()
    assert (found[:, 70:] == 0).all()


def test_in_fp32_it_is_the_same_layer() -> None:
    """Bit for bit, with its columns and its size."""
    exact, linear = RowLinear(WEIGHT, BIAS), DeviceLinear(WEIGHT, BIAS)
    assert torch.equal(linear(ROWS), exact(ROWS))
    assert torch.equal(linear.columns([3, 1]), exact.columns([3, 1]))
    assert linear.columns([]).shape == exact.columns([]).shape == (0, 96)
    assert (linear.size_bytes, linear.in_features, linear.out_features) == (exact.size_bytes, 96, 70)


@pytest.mark.parametrize("dtype", [torch.float32, *STEP])
def test_codes_become_weights_of_a_dtype(device: str, dtype: torch.dtype) -> None:
    """The same as a layer of what they stand for."""
    codes = quantize(WEIGHT, 4)
    held = codes.to(device)
    linear = device_linears(dtype)(held, BIAS.to(device))
    weight = codes.dequantized().to(dtype).to(device)
    assert isinstance(linear, PackedLinear)
    assert torch.equal(linear(ROWS.to(device)), DeviceLinear(weight, BIAS.to(device))(ROWS.to(device)))
    assert isinstance(device_linears(dtype)(weight, None), DeviceLinear)
