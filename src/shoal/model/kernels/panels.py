"""Matrices in the order in which the compiled kernels read them: panels of 64 outputs, inputs downwards (native/src/abi.h)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from shoal.model.kernels.quantized import Quantized

PANEL = 64
STEP = 8
"""Inputs are padded to a multiple of this."""

F32, BF16, Q4, Q8 = range(4)
"""Kinds of panels, as the kernels number them."""


class Panels(NamedTuple):
    """A packed matrix [out, in]: `data` as the kind wants it, scales [panels, groups, 64] in fp16, bias [padded out]."""

    kind: int
    out_features: int
    in_features: int
    group: int
    data: Tensor
    scales: Tensor | None
    bias: Tensor | None
    int8_rows: bool = False
    """Of quantized kinds: whether inputs are rounded to 8 bits as well, per row and group."""

    @property
    def size_bytes(self) -> int:
        """Memory that it takes."""
        return sum(part.nbytes for part in (self.data, self.scales, self.bias) if part is not None)

    @property
    def num_panels(self) -> int:
        """Panels of 64 outputs."""
        return -(-self.out_features // PANEL)


def pack(weight: Tensor | Quantized, bias: Tensor | None = None, int8_rows: bool = False) -> Panels:
    """Pack a matrix [out, in] in fp32 or bf16, or a quantized one with `int8_rows`. Raises ValueError for another dtype."""
    rows = None if bias is None else torch.nn.functional.pad(bias.to(torch.float32), (0, -bias.shape[0] % PANEL))
    if isinstance(weight, Quantized):
        kind = Q4 if weight.bits == 4 else Q8
        scales = torch.nn.functional.pad(weight.scales, (0, 0, 0, -weight.scales.shape[0] % PANEL))
        scales = scales.view(-1, PANEL, scales.shape[1]).transpose(1, 2).contiguous()
        data = _nibbles(weight.codes) if weight.bits == 4 else _interleaved(weight.codes, 4)
        return Panels(kind, weight.shape[0], weight.shape[1], weight.group, data, scales, rows, int8_rows)
    if weight.dtype == torch.float32:
        return Panels(F32, weight.shape[0], weight.shape[1], 0, _interleaved(weight, 1), None, rows)
    if weight.dtype == torch.bfloat16:
        return Panels(BF16, weight.shape[0], weight.shape[1], 0, _interleaved(weight, 2), None, rows)
    raise ValueError(f"there are no panels of {weight.dtype}")


def _padded(matrix: Tensor) -> Tensor:
    if matrix.shape[0] % PANEL == 0 and matrix.shape[1] % STEP == 0:
        return matrix  # a vocabulary's matrix is not copied for nothing
    return torch.nn.functional.pad(matrix, (0, -matrix.shape[1] % STEP, 0, -matrix.shape[0] % PANEL))


def _interleaved(matrix: Tensor, step: int) -> Tensor:
    """[panels, in / step, 64, step]: `step` inputs of an output lie together."""
    whole = _padded(matrix)
    return whole.view(-1, PANEL, whole.shape[1] // step, step).transpose(1, 2).contiguous()


def _nibbles(codes: Tensor) -> Tensor:
    """[panels, in / 8, 64, 4] bytes: a little-endian word has input 8i + j in bits 4j…4j+3, as two's complement."""
    eight = _interleaved(codes, 8).to(torch.uint8)
    return (eight[..., 0::2] & 15) | (eight[..., 1::2] << 4)


def unpacked(panels: Panels) -> Tensor:
    """The matrix [out, in] again, in fp32."""
    return unpacked_columns(panels, list(range(panels.out_features)))


def unpacked_columns(panels: Panels, outputs: list[int]) -> Tensor:
    """Some outputs' weights [n, in] in fp32."""
    if len(outputs) == 1:  # a decoded token's embedding is taken by plain slices: several times as fast
        first, lane = outputs[0] // PANEL, outputs[0] % PANEL
        where: tuple[Any, ...] = (slice(first, first + 1), slice(None), lane)
    else:
        index = torch.tensor(outputs, dtype=torch.long)
        where = (index // PANEL, slice(None), index % PANEL)
    data = panels.data[where].flatten(1)
    if panels.kind == Q4:
        pairs = torch.stack([data & 15, data >> 4], dim=-1).flatten(1).to(torch.int16)
        data = torch.where(pairs > 7, pairs - 16, pairs)
    whole = data.to(torch.float32)
    if panels.scales is not None:
        scales = panels.scales[where].flatten(1).to(torch.float32)
        whole = whole * scales.repeat_interleave(panels.group, 1)[:, : whole.shape[1]]
    return whole[:, : panels.in_features]
