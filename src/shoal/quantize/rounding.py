"""Rounding a matrix to EXL2's codes, input after input, where later inputs make up for the errors of earlier ones
(GPTQ, arXiv:2210.17323)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from shoal.errors import CheckpointError
from shoal.model.quant.packed_matrix import squared_scales, unit_of
from shoal.quantize.hessian import DAMPING, InverseFactor
from shoal.quantize.row_groups import Groups
from shoal.quantize.scale_search import (
    GroupScales,
    ScaleSearch,
    inverse_of,
    nearest_codes,
    search_scales,
    values_of,
)

LARGEST_WEIGHT = 32_768.0
"""Beyond it a code times its scale may leave fp16."""


class RoundingRule(NamedTuple):
    """How matrices are rounded; the default is what `shoal quantize` does. Without `feedback`: each weight to nearest."""

    search: ScaleSearch = search_scales
    damping: float = DAMPING
    feedback: bool = True


class RoundedMatrix(NamedTuple):
    """Codes [inputs, outputs] in uint8 in stored order, from 0 on; for each group steps [groups, outputs] in uint8 and its
    largest scale, [groups] in fp16. `order` [inputs]: the model's input of each stored one.

    `error`: the squared error of the layer's outputs, summed over outputs, as the factor's Hessian has it.
    """

    groups: Groups
    codes: Tensor
    steps: Tensor
    tops: Tensor
    order: Tensor
    error: float

    def dequantized(self) -> Tensor:
        """The weights [outputs, inputs] in fp32, as a reader has them."""
        sizes = [group.inputs for group in self.groups]
        parts = [
            values_of(codes.to(torch.float32) - (1 << (group.bits - 1)), squared_scales(steps, unit_of(top)))
            for group, codes, steps, top in zip(
                self.groups, torch.split(self.codes, sizes), self.steps, self.tops, strict=True
            )
        ]
        weights = torch.empty(self.codes.shape[1], self.codes.shape[0])
        weights[:, self.order] = torch.cat(parts).T
        return weights


def round_matrix(
    weight: Tensor, factor: InverseFactor, groups: Groups, search: ScaleSearch = search_scales
) -> RoundedMatrix:
    """A matrix [outputs, inputs] as codes in these groups. Raises CheckpointError for weights that fp16 cannot hold."""
    if not bool(weight.abs().max() <= LARGEST_WEIGHT):
        raise CheckpointError(f"weights that are not finite, or beyond {LARGEST_WEIGHT:.0f}, cannot be quantized")
    rest = weight.to(torch.float32).T[factor.order].contiguous()
    codes = torch.empty(rest.shape, dtype=torch.uint8)
    scales, weights, error, first = list[GroupScales](), factor.weights, 0.0, 0
    for group in groups:
        end = first + group.inputs
        rows, inner = rest[first:end], factor.upper[first:end, first:end]
        found = search(rows, weights[first:end], group.bits)
        errors = _round_group(rows, inner, found.scales, group.bits, codes[first:end])
        rest[end:].addmm_(factor.upper[first:end, end:].T, errors, alpha=-1)
        error += float(errors.square().sum(dtype=torch.float64))
        scales.append(found)
        first = end
    steps, tops = torch.stack([one.steps for one in scales]), torch.stack([one.top for one in scales])
    return RoundedMatrix(groups, codes, steps, tops, factor.order, error)


def _round_group(rows: Tensor, upper: Tensor, scales: Tensor, bits: int, codes: Tensor) -> Tensor:
    """Round rows [inputs, outputs] one after the other, into `codes`; returns their errors, each over its diagonal."""
    half = 1 << (bits - 1)
    errors = torch.empty_like(rows)
    diagonal, inverse = upper.diagonal().tolist(), inverse_of(scales)
    for index in range(rows.shape[0]):
        row = rows[index]
        code = nearest_codes(row, inverse, bits)
        errors[index] = row.sub(values_of(code, scales)).div_(diagonal[index])
        rows[index + 1 :].addr_(upper[index, index + 1 :], errors[index], alpha=-1)
        codes[index] = (code + half).to(torch.uint8)
    return errors


def output_error(difference: Tensor, hessian: Tensor) -> float:
    """The square of a layer's outputs, summed over them, over the rows that a Hessian stands for; of a difference between
    weights [outputs, inputs], the squared error."""
    return float((difference @ hessian).mul_(difference).sum(dtype=torch.float64))
