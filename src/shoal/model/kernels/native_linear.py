"""Linear layers on the compiled kernels: row-exact for any number of rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from shoal.model.kernels.cpu import Context, linear_struct
from shoal.model.kernels.linears import Linear, MakeLinear
from shoal.model.kernels.panels import Panels, pack, unpacked_columns
from shoal.model.kernels.quantized import Matrix


class NativeLinear(Linear):
    """Packed weights, and the threads that multiply by them."""

    def __init__(self, panels: Panels, context: Context) -> None:
        self.out_features, self.in_features = panels.out_features, panels.in_features
        self._panels = panels
        self._struct = linear_struct(panels)
        self._context = context

    def __call__(self, rows: Tensor) -> Tensor:
        out = torch.empty(rows.shape[0], self._panels.columns)
        self._context.linear(self._struct, rows, out)
        return out

    def columns(self, outputs: list[int]) -> Tensor:
        return unpacked_columns(self._panels, outputs)

    @property
    def size_bytes(self) -> int:
        return self._panels.size_bytes


def native_linears(context: Context, int8_rows: bool = False) -> MakeLinear:
    """What makes linear layers that run on a context; see `Panels.int8_rows`."""

    def make(weights: Matrix | Sequence[Matrix], bias: Tensor | None = None) -> NativeLinear:
        return NativeLinear(pack(weights, bias, int8_rows), context)

    return make
