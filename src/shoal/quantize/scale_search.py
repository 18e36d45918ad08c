"""Scales of one group of an EXL2 matrix: a step out of sixteen for each output, and the group's largest scale."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from shoal.model.quant.packed_matrix import squared_scales, unit_of

LEAST_TOP = 2.0**-16
"""The least of a group's largest scales whose unit is not zero in fp16."""

CLIPPED: Mapping[int, tuple[float, ...]] = {
    2: (0.62, 0.72, 0.84),
    3: (0.76, 0.85, 0.95),
    4: (0.85, 0.92, 1.0),
    5: (0.92, 1.0),
    6: (0.95, 1.0),
    8: (1.0,),
}
"""By width: the group's largest scales that are tried, as shares of the one that clips nothing."""

STEPS_TRIED: Mapping[int, int] = {2: 6, 3: 5, 4: 4, 5: 3, 6: 3, 8: 2}
"""By width: for each output the least step that clips nothing, and so many in all downwards."""


class GroupScales(NamedTuple):
    """`steps` [outputs] in uint8, 0 to 15; `top` in fp16, of no dimension; `scales` [outputs] in fp32."""

    steps: Tensor
    top: Tensor
    scales: Tensor


class ScaleSearch(Protocol):
    """Finds the scales of a group."""

    def __call__(self, rows: Tensor, weights: Tensor, bits: int) -> GroupScales:
        """Rows [inputs, outputs] in fp32, and how much an input's squared error counts, [inputs]."""
        ...


def codes_of(rows: Tensor, scales: Tensor, bits: int) -> Tensor:
    """The nearest codes around zero in fp32; zero where a scale is zero."""
    return nearest_codes(rows, inverse_of(scales), bits)


def inverse_of(scales: Tensor) -> Tensor:
    """1 over each scale; 0 where it is zero."""
    return torch.where(scales > 0, 1 / scales, 0.0)


def nearest_codes(rows: Tensor, inverse: Tensor, bits: int) -> Tensor:
    """`codes_of`, given 1 over the scales."""
    half = 1 << (bits - 1)
    return (rows * inverse).round_().clamp_(-half, half - 1)


def values_of(codes: Tensor, scales: Tensor) -> Tensor:
    """The weights in fp32 that codes around zero stand for: the format's last rounding to fp16."""
    return (codes * scales).to(torch.float16).to(torch.float32)


def search_scales(rows: Tensor, weights: Tensor, bits: int) -> GroupScales:
    """`ScaleSearch`: for each of a few largest scales each output takes the step with the least weighted error; of these the
    largest scale with the least error in all."""
    needed = rows.abs().amax(0) / ((1 << (bits - 1)) - 0.5)
    widest = float(needed.max())
    best: GroupScales | None = None
    least = float("inf")
    for share in CLIPPED[bits]:
        top = torch.tensor(max(widest * share, LEAST_TOP)).to(torch.float16)
        tried, errors = _best_steps(rows, weights, needed, top, bits)
        if (error := float(errors.sum(dtype=torch.float64))) < least:
            best, least = tried, error
    assert best is not None
    return best


def _best_steps(rows: Tensor, weights: Tensor, needed: Tensor, top: Tensor, bits: int) -> tuple[GroupScales, Tensor]:
    """Under one largest scale: each output's best step, and the weighted error [outputs] that is left."""
    unit = unit_of(top)
    first = (torch.sqrt(needed / unit.to(torch.float32)).ceil() - 1).clamp_(0, 15)
    steps = torch.zeros_like(needed)
    least = torch.full_like(needed, float("inf"))
    for lower in range(STEPS_TRIED[bits]):
        tried = (first - lower).clamp_min_(0)
        error = weighted_error(rows, weights, squared_scales(tried, unit), bits)
        better = error < least
        steps, least = torch.where(better, tried, steps), torch.where(better, error, least)
    return GroupScales(steps.to(torch.uint8), top, squared_scales(steps, unit)), least


def weighted_error(rows: Tensor, weights: Tensor, scales: Tensor, bits: int) -> Tensor:
    """Squared rounding errors of each output, summed over inputs by their weights, [outputs]."""
    return weights @ codes_of(rows, scales, bits).mul_(scales).sub_(rows).square_()
