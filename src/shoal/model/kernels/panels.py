"""Matrices in the order in which the compiled kernels read them: panels of 64 outputs, inputs downwards (native/src/abi.h)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from shoal.model.kernels.panel_stream import PanelStreams, in_streams, outputs_of
from shoal.model.kernels.quantized import Matrix, together
from shoal.model.quant.packed_matrix import PackedMatrix

PANEL = 64
STEP = 8
"""Inputs are padded to a multiple of this."""

F32, BF16, PACKED = range(3)
"""Kinds of panels, as the kernels number them."""


class FloatPanels(NamedTuple):
    """A matrix [outputs, inputs] of floats: `data` as its kind wants it."""

    kind: int
    outputs: int
    inputs: int
    data: Tensor

    @property
    def size_bytes(self) -> int:
        """Memory that it takes."""
        return self.data.nbytes


PanelMatrix = FloatPanels | PanelStreams


class Panels(NamedTuple):
    """Matrices [outputs, in] of one linear layer, one under the other, and its bias [out + 64] in fp32.

    `int8_rows`: whether inputs are rounded to 8 bits where weights are codes.
    """

    out_features: int
    in_features: int
    matrices: tuple[PanelMatrix, ...]
    bias: Tensor | None
    int8_rows: bool = False

    @property
    def size_bytes(self) -> int:
        """Memory that it takes."""
        bias_bytes = 0 if self.bias is None else self.bias.nbytes
        return sum(matrix.size_bytes for matrix in self.matrices) + bias_bytes

    @property
    def columns(self) -> int:
        """Outputs with what fills the last panel up."""
        return -(-self.out_features // PANEL) * PANEL


def pack(weights: Matrix | Sequence[Matrix], bias: Tensor | None = None, int8_rows: bool = False) -> Panels:
    """Pack one matrix [out, in], or several of one layer. Raises ValueError for a dtype but fp32 and bf16."""
    matrices = tuple(map(_matrix, together(weights)))
    padded = None if bias is None else torch.nn.functional.pad(bias.to(torch.float32), (0, PANEL))
    codes = any(isinstance(one, PanelStreams) for one in matrices)
    return Panels(sum(one.outputs for one in matrices), matrices[0].inputs, matrices, padded, int8_rows and codes)


def _matrix(weight: Matrix) -> PanelMatrix:
    if isinstance(weight, PackedMatrix):
        return in_streams(weight)
    if weight.dtype == torch.float32:
        return FloatPanels(F32, weight.shape[0], weight.shape[1], _interleaved(weight, 1))
    if weight.dtype == torch.bfloat16:
        return FloatPanels(BF16, weight.shape[0], weight.shape[1], _interleaved(weight, 2))
    raise ValueError(f"there are no panels of {weight.dtype}")


def _padded(matrix: Tensor) -> Tensor:
    if matrix.shape[0] % PANEL == 0 and matrix.shape[1] % STEP == 0:
        return matrix  # a vocabulary's matrix is not copied for nothing
    return torch.nn.functional.pad(matrix, (0, -matrix.shape[1] % STEP, 0, -matrix.shape[0] % PANEL))


def _interleaved(matrix: Tensor, step: int) -> Tensor:
    """[panels, in / step, 64, step]: `step` inputs of an output lie together."""
    whole = _padded(matrix)
    return whole.view(-1, PANEL, whole.shape[1] // step, step).transpose(1, 2).contiguous()


def unpacked(panels: Panels) -> Tensor:
    """The matrix [out, in] again, in fp32."""
    return unpacked_columns(panels, list(range(panels.out_features)))


def unpacked_columns(panels: Panels, outputs: list[int]) -> Tensor:
    """Some outputs' weights [n, in] in fp32."""
    if len(panels.matrices) == 1:
        return _columns(panels.matrices[0], outputs)
    found = torch.empty(len(outputs), panels.in_features)
    first = 0
    for matrix in panels.matrices:
        here = [number for number, output in enumerate(outputs) if first <= output < first + matrix.outputs]
        if here:
            found[here] = _columns(matrix, [outputs[number] - first for number in here])
        first += matrix.outputs
    return found


def _columns(matrix: PanelMatrix, outputs: list[int]) -> Tensor:
    if not outputs:
        return torch.empty(0, matrix.inputs)
    if isinstance(matrix, PanelStreams):
        return outputs_of(matrix, outputs).weights()
    if len(outputs) == 1:  # a decoded token's embedding is taken by plain slices: several times as fast
        first, lane = outputs[0] // PANEL, outputs[0] % PANEL
        where: tuple[Any, ...] = (slice(first, first + 1), slice(None), lane)
    else:
        index = torch.tensor(outputs, dtype=torch.long)
        where = (index // PANEL, slice(None), index % PANEL)
    return matrix.data[where].flatten(1).to(torch.float32)[:, : matrix.inputs]
