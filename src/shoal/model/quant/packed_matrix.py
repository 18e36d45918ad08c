"""The one form of a quantized matrix, whatever file it came from (docs/concepts/packed-form.md)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

WIDTHS = (2, 3, 4, 5, 6, 8)
"""Bits that a code may have."""


class Levels(NamedTuple):
    """A number for each group and output. Of one level: `units`. Of two: a unit times a small whole number.

    `units` [outputs or 1, units] are floats; `steps` [outputs, groups] are uint8 or int8, and `groups_per_unit` groups
    share a unit. `squared`: the number is fp16((step + 1)² · unit), EXL2's grid.
    """

    units: Tensor
    steps: Tensor | None = None
    groups_per_unit: int = 1
    squared: bool = False

    def values(self) -> Tensor:
        """The numbers [outputs, groups] in fp32, as their format has them."""
        units = self.units
        if self.groups_per_unit > 1:
            units = units.repeat_interleave(self.groups_per_unit, 1)
        if self.steps is None:
            return units.to(torch.float32)
        units = units[:, : self.steps.shape[1]]
        if self.squared:
            squares = (self.steps.to(torch.int32) + 1).square().to(torch.float16)
            return (squares * units.to(torch.float16)).to(torch.float32)
        return units.to(torch.float32) * self.steps.to(torch.float32)

    @property
    def size_bytes(self) -> int:
        """Memory that the parts take as they are here."""
        return self.units.nbytes + (0 if self.steps is None else self.steps.nbytes)


class Section(NamedTuple):
    """Stored inputs one after the other whose codes have the same width and whose groups have the same size.

    A weight is `(code − zero) · scale − minimum`; or `table[code] · scale` where there is a table. `zeros`, where a format
    has them, are whole numbers [outputs, groups] beside `zero`. The last group may have fewer inputs.
    """

    inputs: int
    bits: int
    group: int
    scales: Levels
    zero: int = 0
    zeros: Tensor | None = None
    minima: Levels | None = None
    table: tuple[int, ...] | None = None

    @property
    def groups(self) -> int:
        """How many groups there are."""
        return -(-self.inputs // self.group)

    def weights(self, codes: Tensor) -> Tensor:
        """The numbers [outputs, inputs] in fp32 that codes [outputs, inputs] stand for, before a format rounds them."""
        whole = (
            codes.to(torch.float32)
            if self.table is None
            else torch.tensor(self.table, dtype=torch.float32)[codes.long()]
        )
        whole -= self.zero
        if self.zeros is not None:
            whole -= self._spread(self.zeros.to(torch.float32))
        whole *= self._spread(self.scales.values())
        return whole if self.minima is None else whole.sub_(self._spread(self.minima.values()))

    def _spread(self, levels: Tensor) -> Tensor:
        return levels.repeat_interleave(self.group, 1)[:, : self.inputs]

    @property
    def size_bytes(self) -> int:
        """Memory of what stands beside the codes."""
        parts = (self.scales, self.minima)
        return sum(part.size_bytes for part in parts if part is not None) + (
            0 if self.zeros is None else self.zeros.nbytes
        )


class PackedMatrix(NamedTuple):
    """A matrix [outputs, inputs]: codes [outputs, inputs] in uint8, in the stored order of inputs, and their sections.

    `order` [inputs] in int64 says which input each stored one is; None: they are in order. `dtype` is what the format rounds
    a weight to at last.
    """

    codes: Tensor
    sections: tuple[Section, ...]
    order: Tensor | None = None
    dtype: torch.dtype = torch.float32

    @property
    def shape(self) -> torch.Size:
        """[outputs, inputs]."""
        return self.codes.shape

    def dequantized(self) -> Tensor:
        """The weights [outputs, inputs] in `dtype`, bit for bit as the format's own reference decodes them."""
        out = torch.empty(self.shape, dtype=self.dtype)
        for first in range(0, self.shape[0], _SLAB_OUTPUTS):  # what is needed beside the result stays small
            self.outputs(first, first + _SLAB_OUTPUTS)._write(out[first : first + _SLAB_OUTPUTS])
        return out

    def _write(self, out: Tensor) -> None:
        whole = torch.cat([section.weights(codes) for section, codes in self._parts()], 1)
        if self.order is None:
            out.copy_(whole)
        else:
            out[:, self.order] = whole.to(self.dtype)

    def _parts(self) -> Iterator[tuple[Section, Tensor]]:
        at = 0
        for section in self.sections:
            yield section, self.codes[:, at : at + section.inputs]
            at += section.inputs

    def outputs(self, first: int, end: int) -> PackedMatrix:
        """Some outputs alone, as a slice takes them."""
        some = slice(first, end)
        return self._replace(
            codes=self.codes[some], sections=tuple(_of_outputs(section, some) for section in self.sections)
        )

    @property
    def bits_per_weight(self) -> float:
        """Bits that a weight takes with all that stands beside it; codes count with their own width."""
        rows = self.codes.shape[0]
        codes = sum(section.bits * section.inputs for section in self.sections) * rows
        beside = 8 * sum(section.size_bytes for section in self.sections)
        order = 0 if self.order is None else 32 * self.codes.shape[1]
        return (codes + beside + order) / max(1, self.codes.numel())


_SLAB_OUTPUTS = 1024


def _of_outputs(section: Section, some: slice) -> Section:
    def levels(level: Levels) -> Levels:
        units = level.units if level.units.shape[0] == 1 else level.units[some]
        return level._replace(units=units, steps=None if level.steps is None else level.steps[some])

    return section._replace(
        scales=levels(section.scales),
        zeros=None if section.zeros is None else section.zeros[some],
        minima=None if section.minima is None else levels(section.minima),
    )
