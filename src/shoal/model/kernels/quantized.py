"""Rounding to nearest in EXL2's group layout: codes of few bits, and for each group of inputs and each output a scale from
EXL2's grid, ((i + 1)² · max ÷ 256) in fp16 (docs/concepts/quantization.md)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from shoal.model.quant.packed_matrix import WIDTHS, Levels, PackedMatrix, Section, squared_scales, unit_of

GROUP = 64
"""Inputs that share a scale."""

BITS = WIDTHS

_CANDIDATES = 3
"""Scales of the grid that are tried for each column: the least that holds its largest weight, and smaller ones."""


def quantize(weight: Tensor, bits: int, group: int = GROUP) -> PackedMatrix:
    """Round a matrix [out, in] to codes of some bits. For each column of a group the scale with the least squared error.

    Works on a few outputs at a time: what it needs beside the result is small.
    """
    if bits not in BITS:
        raise ValueError(f"{bits} bits are not among {BITS}")
    wanted = torch.cat([_wanted(_grouped(some, group), bits) for some in torch.split(weight, _SLAB_OUTPUTS)])
    unit = unit_of(wanted.amax(0))
    slabs = zip(torch.split(weight, _SLAB_OUTPUTS), torch.split(wanted, _SLAB_OUTPUTS), strict=True)
    rounded = [_rounded(_grouped(some, group), needed, unit, bits) for some, needed in slabs]
    codes = torch.cat([codes for codes, _ in rounded])[:, : weight.shape[1]].contiguous()
    scales = Levels(unit[None], torch.cat([steps for _, steps in rounded]), squared=True)
    return PackedMatrix(codes, (Section(weight.shape[1], bits, group, scales, zero=1 << (bits - 1)),))


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
    """Codes [out, groups · group] and steps [out, groups] in uint8, on the grid that `unit` [groups] in fp16 spans."""
    lowest, highest = _range(bits)
    first = torch.sqrt(wanted / unit.to(torch.float32).clamp_min(_LEAST_UNIT)).ceil().clamp(1, 16)
    best = torch.full_like(wanted, float("inf"))
    codes = torch.zeros_like(grouped, dtype=torch.uint8)
    steps = torch.zeros_like(wanted, dtype=torch.uint8)
    for lower in range(_CANDIDATES):
        step = (first - lower).clamp_min(1)
        scale = squared_scales(step - 1, unit)[..., None]
        tried = torch.where(scale > 0, (grouped / scale).round_(), 0.0).clamp_(lowest, highest)
        error = (tried * scale - grouped).square_().sum(2)
        better = error < best
        best = torch.where(better, error, best)
        steps = torch.where(better, (step - 1).to(torch.uint8), steps)
        codes = torch.where(better[..., None], (tried - lowest).to(torch.uint8), codes)
    return codes.flatten(1), steps


_LEAST_UNIT = 2.0**-24
"""The smallest number above zero in fp16."""


Matrix = Tensor | PackedMatrix
"""A weight [out, in] as floats or as codes."""


def together(weights: Matrix | Sequence[Matrix]) -> list[Matrix]:
    """The matrices of one layer: floats of one dtype are one matrix."""
    matrices = [weights] if isinstance(weights, Tensor | PackedMatrix) else list(weights)
    floats = [one for one in matrices if isinstance(one, Tensor)]
    same = len(floats) == len(matrices) > 1 and len({one.dtype for one in floats}) == 1
    return [torch.cat(floats)] if same else matrices


def weights_of(matrix: Matrix) -> Tensor:
    """The numbers [out, in] that a matrix is computed with: of codes those in fp32 before a format rounds them at last."""
    return matrix.weights() if isinstance(matrix, PackedMatrix) else matrix


def filled_up(matrix: Matrix, out_features: int = 0, in_features: int = 0) -> Matrix:
    """The matrix with zeros up to at least so many outputs and inputs."""
    if isinstance(matrix, PackedMatrix):
        return matrix.filled_up(out_features, in_features)
    missing = max(0, out_features - matrix.shape[0]), max(0, in_features - matrix.shape[1])
    return torch.nn.functional.pad(matrix, (0, missing[1], 0, missing[0])) if any(missing) else matrix
