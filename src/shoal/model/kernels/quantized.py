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
    """Round a matrix [out, in] to codes of 4 or 8 bits. For each column of a group the scale with the least squared error.

    Works on a few outputs at a time: what it needs beside the result is small.
    """
    if bits not in BITS:
        raise ValueError(f"{bits} bits are not among {BITS}")
    wanted = torch.cat([_wanted(_grouped(some, group), bits) for some in torch.split(weight, _SLAB_OUTPUTS)])
    unit = (wanted.amax(0) / 256).to(torch.float16)
    slabs = zip(torch.split(weight, _SLAB_OUTPUTS), torch.split(wanted, _SLAB_OUTPUTS), strict=True)
    rounded = [_rounded(_grouped(some, group), needed, unit, bits) for some, needed in slabs]
    codes = torch.cat([codes for codes, _ in rounded])[:, : weight.shape[1]].contiguous()
    return Quantized(codes, torch.cat([scales for _, scales in rounded]), bits, group)


_SLAB_OUTPUTS = 512


def _grouped(weight: Tensor, group: int) -> Tensor:
    """[out, in] → [out, groups, group] in fp32, with zeros at the end."""
    missing = -weight.shape[1] % group
    return torch.nn.functional.pad(weight.to(torch.float32), (0, missing)).view(weight.shape[0], -1, group)


def _range(bits: int) -> tuple[int, int]:
    return -(1 << (bits - 1)), (1 << (bits - 1)) - 1


def _wanted(grouped: Tensor, bits: int) -> Tensor:
    """The least scales [out, groups] that clip nothing."""
    lowest, highest = _range(bits)
    return torch.maximum(grouped.amax(2) / highest, grouped.amin(2) / lowest)


def _rounded(grouped: Tensor, wanted: Tensor, unit: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Codes [out, groups · group] in int8 and scales [out, groups] in fp16, on the grid that `unit` [groups] in fp16 spans."""
    lowest, highest = _range(bits)
    first = torch.sqrt(wanted / unit.to(torch.float32).clamp_min(_LEAST_UNIT)).ceil().clamp(1, 16)
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
    return codes.flatten(1), scales


_LEAST_UNIT = 2.0**-24
"""The smallest number above zero in fp16."""


Matrix = Tensor | Quantized
"""A weight [out, in] as floats or as codes."""


def concatenated(matrices: Sequence[Matrix]) -> Matrix:
    """Matrices [out_i, in] of one kind, one under the other; a single one as it is."""
    if len(matrices) == 1:
        return matrices[0]
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
