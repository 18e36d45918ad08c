"""Packed matrices of every form that a file may have, with numbers from nowhere."""

from __future__ import annotations

import torch
from torch import Tensor

from shoal.model.kernels.quantized import quantize
from shoal.model.quant.ggml import IQ4_NL
from shoal.model.quant.packed_matrix import Levels, PackedMatrix, Section


def _units(generator: torch.Generator, outputs: int, count: int, dtype: torch.dtype = torch.float16) -> Tensor:
    return (0.01 + 0.05 * torch.rand(outputs, count, generator=generator)).to(dtype)


def _whole(generator: torch.Generator, outputs: int, count: int, low: int, high: int) -> Tensor:
    dtype = torch.int8 if low < 0 else torch.uint8
    return torch.randint(low, high, (outputs, count), generator=generator, dtype=torch.int64).to(dtype)


FORMS = (
    *("plain", "bf16", "fp32", "zeros", "large zeros", "steps", "signed", "squared", "nibbles", "minima", "table"),
    *("an output", "a matrix"),
)
"""How the levels of a section are stored."""


def section(form: str, seed: int, outputs: int, inputs: int, bits: int, group: int) -> Section:
    """A section of some form; those of tables have 4 bits."""
    some = torch.Generator().manual_seed(seed)
    group = inputs if form in ("an output", "a matrix") else group
    groups, zero = -(-inputs // group), 1 << (bits - 1)
    per, dtype = 4, {"bf16": torch.bfloat16, "fp32": torch.float32}.get(form, torch.float16)
    units, above = _units(some, outputs, groups, dtype), _units(some, outputs, -(-groups // per))
    if form == "zeros":
        return Section(inputs, bits, group, Levels(units), 0, _whole(some, outputs, groups, 1, min(16, 1 << bits)))
    if form == "large zeros":
        return Section(inputs, bits, group, Levels(units), 0, _whole(some, outputs, groups, 0, 1 << bits))
    if form == "steps":
        return Section(inputs, bits, group, Levels(above, _whole(some, outputs, groups, 0, 64), per), zero)
    if form == "signed":
        return Section(inputs, bits, group, Levels(above, _whole(some, outputs, groups, -128, 128), per), zero)
    if form == "squared":
        return Section(inputs, bits, group, Levels(units[:1] / 64, _whole(some, outputs, groups, 0, 16), 1, True), zero)
    if form in ("nibbles", "minima"):
        most = 16 if form == "nibbles" else 64
        scales, minima = (
            Levels(_units(some, outputs, above.shape[1]), _whole(some, outputs, groups, 0, most), per) for _ in range(2)
        )
        return Section(inputs, bits, group, scales, 0, None, minima)
    if form == "table":
        return Section(inputs, 4, group, Levels(units), 0, None, None, IQ4_NL)
    if form == "a matrix":
        return Section(inputs, bits, group, Levels(units[:1]), zero)
    return Section(inputs, bits, group, Levels(units), zero)


def matrix(seed: int, outputs: int, sections: tuple[Section, ...], ordered: bool = True) -> PackedMatrix:
    """Random codes in these sections, in the inputs' order or another."""
    some = torch.Generator().manual_seed(seed)
    codes = torch.cat(
        [torch.randint(0, 1 << one.bits, (outputs, one.inputs), generator=some, dtype=torch.int64) for one in sections],
        1,
    )
    order = None if ordered else torch.randperm(codes.shape[1], generator=some)
    return PackedMatrix(codes.to(torch.uint8), sections, order, torch.float16)


def of_form(form: str, outputs: int, inputs: int, bits: int = 4, group: int = 32) -> PackedMatrix:
    """A matrix of one section."""
    return matrix(1, outputs, (section(form, 2, outputs, inputs, bits, group),))


def mixed(outputs: int, inputs: int) -> PackedMatrix:
    """As EXL2 has them: widths that fall, groups of several sizes, inputs in another order, a short last group."""
    cuts = [inputs // 2 // 32 * 32, inputs // 4 // 16 * 16]
    cuts.append(inputs - sum(cuts))
    kinds = zip(cuts, (6, 4, 3), (32, 16, 64), strict=True)
    parts = tuple(section("squared", 5 + bits, outputs, count, bits, group) for count, bits, group in kinds if count)
    return matrix(3, outputs, parts, ordered=False)


def rounded(weight: Tensor, bits: int) -> PackedMatrix:
    """What `--quantize` makes."""
    return quantize(weight, bits)
