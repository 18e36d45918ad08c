"""Linear layers in plain torch, row-exact, behind the face that every kind of linear layer has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from shoal.model.kernels.quantized import Matrix, together
from shoal.model.kernels.tiles import padded
from shoal.model.quant.packed_matrix import PackedMatrix


class Linear(Protocol):
    """y = x Wᵀ + b."""

    out_features: int
    in_features: int

    def __call__(self, rows: Tensor) -> Tensor:
        """x [n, in] in fp32 → y [n, padded(out)] in fp32, zero beyond `out_features`; n a multiple of the tile."""
        ...

    def columns(self, outputs: list[int]) -> Tensor:
        """The weights of some outputs, [n, in] in fp32: an embedding's rows where the head is tied to it."""
        ...

    @property
    def size_bytes(self) -> int:
        """Memory that the weight and the bias take."""
        ...


MakeLinear = Callable[[Matrix | Sequence[Matrix], Tensor | None], Linear]
"""A linear layer from a weight [out, in], or several one under the other, and a bias [out]."""


class RowLinear(Linear):
    """The weight is kept in its dtype and becomes one fp32 value per element before it is used."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.out_features, self.in_features = weight.shape
        missing = padded(self.out_features) - self.out_features
        self.weight = F.pad(weight, (0, 0, 0, missing)) if missing else weight.contiguous()
        self.bias = None if bias is None else F.pad(bias.to(torch.float32), (0, missing))

    def __call__(self, rows: Tensor) -> Tensor:
        product = F.linear(rows, self.weight.to(torch.float32))
        # Added on its own: BLAS fuses a bias differently for different heights.
        return product if self.bias is None else product + self.bias

    def columns(self, outputs: list[int]) -> Tensor:
        return self.weight[torch.tensor(outputs, dtype=torch.long, device=self.weight.device)].to(torch.float32)

    @property
    def size_bytes(self) -> int:
        bias_bytes = 0 if self.bias is None else self.bias.nbytes
        return self.weight.nbytes + bias_bytes


class DeviceLinear(Linear):
    """For devices that are fast in 16 bits: rows are rounded to the weight's dtype, and so is the product, whose
    sums are fp32 inside the device's BLAS. With a weight in fp32 it computes what `RowLinear` does."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.out_features, self.in_features = weight.shape
        self._held = RowLinear(weight, bias)

    def __call__(self, rows: Tensor) -> Tensor:
        weight, bias = self._held.weight, self._held.bias
        product = F.linear(rows.to(weight.dtype), weight).to(torch.float32)
        return product if bias is None else product + bias

    def columns(self, outputs: list[int]) -> Tensor:
        return self._held.columns(outputs)

    @property
    def size_bytes(self) -> int:
        return self._held.size_bytes


class PackedLinear(Linear):
    """Codes become weights in `dtype` at every call: right, small and slow. Below fp32 rows are rounded as well;
    see `DeviceLinear`."""

    def __init__(self, weight: PackedMatrix, bias: Tensor | None = None, dtype: torch.dtype = torch.float32) -> None:
        self.out_features, self.in_features = weight.shape
        self._weight = weight
        self._bias = bias
        self._dtype = dtype

    def __call__(self, rows: Tensor) -> Tensor:
        return DeviceLinear(self._weight.weights().to(self._dtype), self._bias)(rows)

    def columns(self, outputs: list[int]) -> Tensor:
        return self._weight.chosen(torch.tensor(outputs, dtype=torch.long, device=self._weight.codes.device)).weights()

    @property
    def size_bytes(self) -> int:
        return sum(part.nbytes for part in (*self._weight.parts, *(() if self._bias is None else (self._bias,))))


class StackedLinear(Linear):
    """Several layers of the same rows, whose outputs follow each other."""

    def __init__(self, layers: Sequence[Linear], bias: Tensor | None = None) -> None:
        self.out_features, self.in_features = sum(one.out_features for one in layers), layers[0].in_features
        self._layers = layers
        self._missing = padded(self.out_features) - self.out_features
        self._bias = None if bias is None else F.pad(bias.to(torch.float32), (0, self._missing))

    def __call__(self, rows: Tensor) -> Tensor:
        parts = [layer(rows)[:, : layer.out_features] for layer in self._layers]
        product = F.pad(torch.cat(parts, 1), (0, self._missing))
        return product if self._bias is None else product + self._bias

    def columns(self, outputs: list[int]) -> Tensor:
        whole = torch.cat([layer.columns(list(range(layer.out_features))) for layer in self._layers])
        return whole[torch.tensor(outputs, dtype=torch.long, device=whole.device)]

    @property
    def size_bytes(self) -> int:
        return sum(layer.size_bytes for layer in self._layers) + (0 if self._bias is None else self._bias.nbytes)


def _made(make: Callable[[Matrix, Tensor | None], Linear]) -> MakeLinear:
    """From what makes a layer of one matrix."""

    def of_all(weights: Matrix | Sequence[Matrix], bias: Tensor | None = None) -> Linear:
        matrices = together(weights)
        if len(matrices) == 1:
            return make(matrices[0], bias)
        return StackedLinear([make(matrix, None) for matrix in matrices], bias)

    return of_all


def _torch_linear(weight: Matrix, bias: Tensor | None = None) -> Linear:
    return PackedLinear(weight, bias) if isinstance(weight, PackedMatrix) else RowLinear(weight, bias)


torch_linear = _made(_torch_linear)
"""Makes linear layers in plain torch."""


def device_linears(dtype: torch.dtype) -> MakeLinear:
    """What makes linear layers for a device: floats are multiplied in their own dtype, codes as weights in `dtype`."""

    def make(weight: Matrix, bias: Tensor | None = None) -> Linear:
        return PackedLinear(weight, bias, dtype) if isinstance(weight, PackedMatrix) else DeviceLinear(weight, bias)

    return _made(make)
