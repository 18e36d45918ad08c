"""The layers of a block, row-exact."""

from __future__ import annotations

import torch
from torch import Tensor

from shoal.kernels.tiles import RowLinear, gelu_tanh_, row_sum, silu_


class RmsNorm:
    """x / √(mean(x²) + ε) · w (arXiv:1910.07467)."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        self.weight = weight.to(torch.float32)
        self._eps = eps

    def __call__(self, rows: Tensor) -> Tensor:
        mean = row_sum(rows * rows) / rows.shape[-1]
        return rows / torch.sqrt(mean + self._eps) * self.weight


ACTIVATIONS = {"silu": silu_, "gelu_pytorch_tanh": gelu_tanh_}


class GatedMlp:
    """down(act(gate(x)) · up(x)); gate and up are one matrix, each padded on its own."""

    def __init__(self, gate: RowLinear, up: RowLinear, down: RowLinear, activation: str) -> None:
        self._intermediate = gate.weight.shape[0]
        weight = torch.cat([gate.weight, up.weight])
        bias = None if gate.bias is None or up.bias is None else torch.cat([gate.bias, up.bias])
        self.gate_up = RowLinear(weight, bias)
        self.down = _widened(down, self._intermediate)
        self._act = ACTIVATIONS[activation]

    def __call__(self, rows: Tensor) -> Tensor:
        both = self.gate_up(rows)
        gate = self._act(both[:, : self._intermediate].contiguous())
        return self.down(gate.mul_(both[:, self._intermediate :]))


def _widened(linear: RowLinear, in_features: int) -> RowLinear:
    """The same map for inputs that are padded with zeros."""
    missing = in_features - linear.in_features
    if not missing:
        return linear
    widened = RowLinear(torch.nn.functional.pad(linear.weight, (0, missing)), linear.bias)
    widened.out_features = linear.out_features
    return widened
