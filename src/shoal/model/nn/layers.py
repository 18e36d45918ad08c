"""The layers of a block, row-exact."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from shoal.model.kernels.linears import Linear
from shoal.model.kernels.tiles import gelu_, gelu_tanh_, quick_gelu_, row_sum, silu_


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

    def linears(self) -> Iterator[Linear]:
        """Its matrices."""
        ...


class GatedMlp:
    """down(act(gate(x)) · up(x)); gate and up are one matrix, each padded on its own, and `down` takes what is padded.

    With a `limit` (gpt-oss): act(min(gate, limit)) · (clamp(up, ±limit) + 1).
    """

    def __init__(self, gate_up: Linear, down: Linear, activation: str, limit: float = 0.0) -> None:
        self._intermediate = gate_up.out_features // 2
        self.gate_up = gate_up
        self.down = down
        self._act = ACTIVATIONS[activation]
        self._limit = limit

    def __call__(self, rows: Tensor, tile: int = 0, count: int = 0) -> Tensor:
        gate, up = torch.split(self.gate_up(rows), self._intermediate, dim=1)
        if self._limit:
            gate, up = gate.clamp(max=self._limit), up.clamp(-self._limit, self._limit) + 1
        return self.down(self._act(gate.contiguous()).mul_(up))

    def linears(self) -> Iterator[Linear]:
        """Mlp: its matrices."""
        yield from (self.gate_up, self.down)


class PlainMlp:
    """down(act(up(x))); `down` takes what `up` pads."""

    def __init__(self, up: Linear, down: Linear, activation: str) -> None:
        self.up = up
        self.down = down
        self._act = ACTIVATIONS[activation]

    def __call__(self, rows: Tensor, tile: int = 0, count: int = 0) -> Tensor:
        return self.down(self._act(self.up(rows)))

    def linears(self) -> Iterator[Linear]:
        """Mlp: its matrices."""
        yield from (self.up, self.down)
