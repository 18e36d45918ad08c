"""Rounding to nearest in EXL2's group layout: codes of few bits, and for each group of inputs and each output a scale from
EXL2's grid, ((i + 1)² · max ÷ 256) in fp16 (docs/concepts/quantization.md)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

GROUP = 64
"""Inputs that share a scale."""

BITS = (4, 8)

_CANDIDATES = 3
"""Scales of the grid that are tried for each column: the least that holds its largest weight, and smaller ones."""


class Quantized(NamedTuple):
    """Codes [out, in] int8 around zero (−2^(bits−1) … 2^(bits−1) − 1) and scales [out, groups] fp16: w ≈ code · scale."""

    codes: Tensor
    scales: Tensor
    bits: int
    group: int

    @property
    def shape(self) -> torch.Size:
        """[out, in]."""
        return self.codes.shape

    def dequantized(self) -> Tensor:
        """The weights that the codes stand for, [out, in] in fp32: code · scale, rounded once."""
        spread = self.scales.to(torch.float32).repeat_interleave(self.group, 1)[:, : self.codes.shape[1]]
        return self.codes.to(torch.float32) * spread


def quantize(weight: Tensor, bits: int, group: int = GROUP) -> Quantized:
    """Round a matrix [out, in] to codes of 4 or 8 bits. For each column of a group the scale with the least squared error."""
    if bits not in BITS:
        raise ValueError(f"{bits} bits are not among {BITS}")
    out_features, in_features = weight.shape
    groups = -(-in_features // group)
    grouped = torch.nn.functional.pad(weight.to(torch.float32), (0, groups * group - in_features))
    grouped = grouped.view(out_features, groups, group)
    lowest, highest = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    wanted = torch.maximum(grouped.amax(2) / highest, grouped.amin(2) / lowest)  # [out, groups]: nothing is clipped
    unit = (wanted.amax(0) / 256).to(torch.float16)
    exact = torch.sqrt(wanted / unit.to(torch.float32).clamp_min(torch.finfo(torch.float16).smallest_normal / 1024))
    first = exact.ceil().clamp(1, 16)
    best = torch.full_like(wanted, float("inf"))
    codes = torch.zeros_like(grouped, dtype=torch.int8)
    scales = torch.zeros_like(wanted, dtype=torch.float16)
    for lower in range(_CANDIDATES):
        scale = ((first - lower).clamp_min(1).square().to(torch.float16) * unit).to(torch.float16)
        step = scale.to(torch.float32)[..., None]
        tried = torch.where(step > 0, (grouped / step).round_(), 0.0).clamp_(lowest, highest)
        error = (tried * step - grouped).square_().sum(2)
        better = error < best
        best = torch.where(better, error, best)
        scales = torch.where(better, scale, scales)
        codes = torch.where(better[..., None], tried.to(torch.int8), codes)
    return Quantized(codes.view(out_features, -1)[:, :in_features].contiguous(), scales, bits, group)


Matrix = Tensor | Quantized
"""A weight [out, in] as floats or as codes."""


def concatenated(matrices: Sequence[Matrix]) -> Matrix:
    """Matrices [out_i, in] of one kind, one under the other."""
    parts = [matrix for matrix in matrices if isinstance(matrix, Quantized)]
    if not parts:
        return torch.cat([matrix for matrix in matrices if isinstance(matrix, Tensor)])
    if len(parts) != len(matrices) or len({(part.bits, part.group) for part in parts}) > 1:
        raise ValueError("matrices of different kinds cannot be put together")
    codes, scales = torch.cat([part.codes for part in parts]), torch.cat([part.scales for part in parts])
    return Quantized(codes, scales, parts[0].bits, parts[0].group)


def filled_up(matrix: Matrix, out_features: int = 0, in_features: int = 0) -> Matrix:
    """The matrix with zeros up to at least so many outputs and inputs."""
    if isinstance(matrix, Quantized):
        codes = filled_up(matrix.codes, out_features, in_features)
        assert isinstance(codes, Tensor)
        groups = -(-codes.shape[1] // matrix.group)
        scales = filled_up(matrix.scales, out_features, groups)
        assert isinstance(scales, Tensor)
        return matrix._replace(codes=codes, scales=scales)
    missing = max(0, out_features - matrix.shape[0]), max(0, in_features - matrix.shape[1])
    return torch.nn.functional.pad(matrix, (0, missing[1], 0, missing[0])) if any(missing) else matrix
