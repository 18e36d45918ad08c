"""The layers of a block, row-exact."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from shoal.kernels.tiles import RowLinear, gelu_, gelu_tanh_, quick_gelu_, row_sum, silu_


class Norm(Protocol):
    """Brings rows [..., width] to a common scale."""

    weight: Tensor
    bias: Tensor | None

    def __call__(self, rows: Tensor) -> Tensor:
        """Rows [..., width] in fp32 → the same shape."""
        ...


class RmsNorm:
    """x / √(mean(x²) + ε) · w (arXiv:1910.07467)."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        self.weight = weight.to(torch.float32)
        self.bias: Tensor | None = None
        self._eps = eps

    def __call__(self, rows: Tensor) -> Tensor:
        mean = row_sum(rows * rows) / rows.shape[-1]
        return rows / torch.sqrt(mean + self._eps) * self.weight


class LayerNorm:
    """(x − mean) / √(variance + ε) · w + b (arXiv:1607.06450)."""

    def __init__(self, weight: Tensor, bias: Tensor | None, eps: float) -> None:
        self.weight = weight.to(torch.float32)
        self.bias = None if bias is None else bias.to(torch.float32)
        self._eps = eps

    def __call__(self, rows: Tensor) -> Tensor:
        centred = rows - row_sum(rows) / rows.shape[-1]
        variance = row_sum(centred * centred) / rows.shape[-1]
        scaled = centred / torch.sqrt(variance + self._eps) * self.weight
        return scaled if self.bias is None else scaled + self.bias


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": silu_,
    "gelu_pytorch_tanh": gelu_tanh_,
    "gelu": gelu_,
    "quick_gelu": quick_gelu_,
}


class Mlp(Protocol):
    """What stands between two norms beside attention."""

    def __call__(self, rows: Tensor, tile: int, count: int) -> Tensor:
        """Rows [n, hidden], n a multiple of the tile and the first `count` real → [n, padded(hidden)]."""
        ...

    def linears(self) -> Iterator[RowLinear]:
        """Its matrices."""
        ...


class GatedMlp:
    """down(act(gate(x)) · up(x)); gate and up are one matrix, each padded on its own.

    With a `limit` (gpt-oss): act(min(gate, limit)) · (clamp(up, ±limit) + 1).
    """

    def __init__(self, gate: RowLinear, up: RowLinear, down: RowLinear, activation: str, limit: float = 0.0) -> None:
        self._intermediate = gate.weight.shape[0]
        weight = torch.cat([gate.weight, up.weight])
        bias = None if gate.bias is None or up.bias is None else torch.cat([gate.bias, up.bias])
        self.gate_up = RowLinear(weight, bias)
        self.down = _widened(down, self._intermediate)
        self._act = ACTIVATIONS[activation]
        self._limit = limit

    def __call__(self, rows: Tensor, tile: int = 0, count: int = 0) -> Tensor:
        gate, up = torch.split(self.gate_up(rows), self._intermediate, dim=1)
        if self._limit:
            gate, up = gate.clamp(max=self._limit), up.clamp(-self._limit, self._limit) + 1
        return self.down(self._act(gate.contiguous()).mul_(up))

    def linears(self) -> Iterator[RowLinear]:
        """Mlp: its matrices."""
        yield from (self.gate_up, self.down)


class PlainMlp:
    """down(act(up(x)))."""

    def __init__(self, up: RowLinear, down: RowLinear, activation: str) -> None:
        self.up = up
        self.down = _widened(down, up.weight.shape[0])
        self._act = ACTIVATIONS[activation]

    def __call__(self, rows: Tensor, tile: int = 0, count: int = 0) -> Tensor:
        return self.down(self._act(self.up(rows)))

    def linears(self) -> Iterator[RowLinear]:
        """Mlp: its matrices."""
        yield from (self.up, self.down)


def _widened(linear: RowLinear, in_features: int) -> RowLinear:
    """The same map for inputs that are padded with zeros."""
    missing = in_features - linear.in_features
    if not missing:
        return linear
    widened = RowLinear(torch.nn.functional.pad(linear.weight, (0, missing)), linear.bias)
    widened.out_features = linear.out_features
    return widened
