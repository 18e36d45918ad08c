"""Norms and MLPs against their definitions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from shoal.engine.proof import numbers
from shoal.model.kernels.linears import RowLinear
from shoal.model.nn.layers import ACTIVATIONS, GatedMlp, LayerNorm, PlainMlp, RmsNorm
from tests.support import reference_kernels as reference

ROWS, WEIGHT, BIAS = 3 * numbers(1, 8, 64), numbers(2, 64) + 1, numbers(3, 64)
GATE, UP, DOWN = numbers(4, 64, 64), numbers(5, 64, 64), numbers(6, 64, 64)


def test_norms() -> None:
    """To rounding the reference's, over the last dimension of any shape."""
    torch.testing.assert_close(RmsNorm(WEIGHT, 1e-5)(ROWS), reference.rms_norm(ROWS, WEIGHT, 1e-5))
    heads = ROWS.view(4, 2, 64)
    assert torch.equal(RmsNorm(WEIGHT, 1e-5)(heads).view(8, 64), RmsNorm(WEIGHT, 1e-5)(ROWS))
    torch.testing.assert_close(LayerNorm(WEIGHT, BIAS, 1e-5)(ROWS), reference.layer_norm(ROWS, WEIGHT, BIAS, 1e-5))
    without = LayerNorm(WEIGHT, None, 1e-5)(ROWS)
    torch.testing.assert_close(without, reference.layer_norm(ROWS, WEIGHT, torch.zeros(64), 1e-5))


def test_epsilon_keeps_rows_of_zeros() -> None:
    """They stay zero."""
    assert torch.equal(RmsNorm(WEIGHT, 1e-6)(torch.zeros(2, 64)), torch.zeros(2, 64))


def test_norms_compute_in_fp32() -> None:
    """Whatever their weights are stored in."""
    norm = LayerNorm(WEIGHT.to(torch.bfloat16), BIAS.to(torch.float16), 1e-5)
    assert norm.weight.dtype == torch.float32
    assert norm.bias is not None
    assert norm.bias.dtype == torch.float32


TORCH = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_mlps(activation: str) -> None:
    """down(act(gate) · up) and down(act(up))."""
    act = TORCH[activation]
    gated = GatedMlp(RowLinear(torch.cat([GATE, UP])), RowLinear(DOWN), activation)
    torch.testing.assert_close(gated(ROWS), (act(ROWS @ GATE.T) * (ROWS @ UP.T)) @ DOWN.T, rtol=1e-4, atol=1e-2)
    plain = PlainMlp(RowLinear(UP), RowLinear(DOWN), activation)
    torch.testing.assert_close(plain(ROWS), act(ROWS @ UP.T) @ DOWN.T, rtol=1e-4, atol=1e-2)
    assert len(list(gated.linears())) == len(list(plain.linears())) == 2


def test_a_limit_bounds_gate_and_up() -> None:
    """gpt-oss': the gate from above, up from both sides and one more."""
    limited = GatedMlp(RowLinear(torch.cat([GATE, UP])), RowLinear(DOWN), "quick_gelu", 1.5)
    gate, up = (ROWS @ GATE.T).clamp(max=1.5), (ROWS @ UP.T).clamp(-1.5, 1.5) + 1
    torch.testing.assert_close(limited(ROWS), (TORCH["quick_gelu"](gate) * up) @ DOWN.T, rtol=1e-4, atol=1e-3)
