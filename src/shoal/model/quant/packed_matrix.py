"""The one form of a quantized matrix, whatever file it came from (docs/concepts/packed-form.md)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

WIDTHS = (2, 3, 4, 5, 6, 8)
"""Bits that a code may have."""


LARGEST_SQUARE = 256
"""EXL2's largest scale is 16² units."""


def unit_of(largest: Tensor) -> Tensor:
    """The unit in fp16 of scales on EXL2's grid, of which these are the largest: the first of the format's two roundings."""
    return (largest.to(torch.float32) / LARGEST_SQUARE).to(torch.float16)


def squared_scales(steps: Tensor, units: Tensor) -> Tensor:
    """Scales in fp32 on EXL2's grid of steps from 0 on: fp16((step + 1)² · unit)."""
    return ((steps.to(torch.int32) + 1).square().to(torch.float16) * units.to(torch.float16)).to(torch.float32)


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
            return squared_scales(self.steps, units)
        return units.to(torch.float32) * self.steps.to(torch.float32)

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """What it consists of."""
        return (self.units,) if self.steps is None else (self.units, self.steps)

    def each(self, change: Callable[[Tensor], Tensor]) -> Levels:
        """With other parts."""
        return self._replace(units=change(self.units), steps=None if self.steps is None else change(self.steps))

    def of_outputs(self, change: Callable[[Tensor], Tensor]) -> Levels:
        """With other outputs; units that all outputs share stay."""
        shared = self.units.shape[0] == 1
        return self.each(lambda part: part if shared and part is self.units else change(part))


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
    def parts(self) -> tuple[Tensor, ...]:
        """What stands beside the codes."""
        zeros = () if self.zeros is None else (self.zeros,)
        return (*self.scales.parts, *(() if self.minima is None else self.minima.parts), *zeros)

    @property
    def size_bytes(self) -> int:
        """Memory of what stands beside the codes."""
        return sum(part.nbytes for part in self.parts)

    def each(self, change: Callable[[Tensor], Tensor]) -> Section:
        """With other parts."""
        return self._changed(lambda levels: levels.each(change), change)

    def of_outputs(self, change: Callable[[Tensor], Tensor]) -> Section:
        """With other outputs; units that all outputs share stay."""
        return self._changed(lambda levels: levels.of_outputs(change), change)

    def _changed(self, levels: Callable[[Levels], Levels], change: Callable[[Tensor], Tensor]) -> Section:
        return self._replace(
            scales=levels(self.scales),
            zeros=None if self.zeros is None else change(self.zeros),
            minima=None if self.minima is None else levels(self.minima),
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

    def weights(self) -> Tensor:
        """The same in fp32, before the format rounds them at last: what is computed with."""
        return self._replace(dtype=torch.float32).dequantized()

    def _parts(self) -> Iterator[tuple[Section, Tensor]]:
        at = 0
        for section in self.sections:
            yield section, self.codes[:, at : at + section.inputs]
            at += section.inputs

    def outputs(self, first: int, end: int) -> PackedMatrix:
        """Some outputs alone, as a slice takes them."""
        return self._of_outputs(lambda part: part[first:end])

    def chosen(self, outputs: Tensor) -> PackedMatrix:
        """Some outputs [n] alone, in this order."""
        return self._of_outputs(lambda part: part[outputs])

    def _of_outputs(self, change: Callable[[Tensor], Tensor]) -> PackedMatrix:
        return self._replace(
            codes=change(self.codes), sections=tuple(section.of_outputs(change) for section in self.sections)
        )

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """The tensors that it consists of."""
        order = () if self.order is None else (self.order,)
        return (self.codes, *(part for section in self.sections for part in section.parts), *order)

    def to(self, device: torch.device | str) -> PackedMatrix:
        """The same on a device."""
        sections = tuple(section.each(lambda part: part.to(device)) for section in self.sections)
        order = None if self.order is None else self.order.to(device)
        return self._replace(codes=self.codes.to(device), sections=sections, order=order)

    def filled_up(self, outputs: int, inputs: int) -> PackedMatrix:
        """With zeros up to at least so many outputs and inputs."""
        more, wider = max(0, outputs - self.shape[0]), max(0, inputs - self.shape[1])
        taller = self if not more else self._of_outputs(lambda part: _below(part, more))
        if more:
            zeros = torch.cat([torch.full((more, one.inputs), one.zero, dtype=torch.uint8) for one in self.sections], 1)
            taller.codes[-more:] = zeros  # whatever their scales
        if not wider:
            return taller
        empty = torch.zeros(taller.shape[0], 1, dtype=self.sections[0].scales.units.dtype)
        section = Section(wider, WIDTHS[0], wider, Levels(empty))
        codes = torch.nn.functional.pad(taller.codes, (0, wider))
        order = None if self.order is None else torch.cat([self.order, torch.arange(wider) + self.shape[1]])
        return taller._replace(codes=codes, sections=(*taller.sections, section), order=order)

    @property
    def bits_per_weight(self) -> float:
        """Bits that a weight takes with all that stands beside it; codes count with their own width."""
        rows = self.codes.shape[0]
        codes = sum(section.bits * section.inputs for section in self.sections) * rows
        beside = 8 * sum(section.size_bytes for section in self.sections)
        order = 0 if self.order is None else 32 * self.codes.shape[1]
        return (codes + beside + order) / max(1, self.codes.numel())


_SLAB_OUTPUTS = 1024


def _below(part: Tensor, rows: int) -> Tensor:
    return torch.nn.functional.pad(part, (0, 0, 0, rows))
