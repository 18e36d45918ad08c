"""How the stored inputs of an EXL2 matrix are cut into groups, and what that costs in the file. Whole numbers only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

WIDTHS = (8, 6, 5, 4, 3, 2)
"""Bits that a code may have, in the order in which groups of them are stored."""

GROUP_SIZES = (32, 64, 128)
"""Inputs that share a scale. Smaller groups are read, and never written: ExLlama's kernel is undefined on them."""

INPUT_MULTIPLE = 32
"""Inputs of a matrix that can be quantized are a multiple of this; others stay in fp16."""

OUTPUT_MULTIPLE = 32
"""Outputs are filled up to a multiple of this."""

STEP_BITS = 4
_GROUP_BITS = 16 + 32  # its largest scale; its width and first row of words
_INPUT_BITS = 32  # its place in the stored order
_FLOAT_BITS = 16


class RowGroup(NamedTuple):
    """Stored inputs that follow each other and share, for each output, a scale."""

    bits: int
    inputs: int


Groups = tuple[RowGroup, ...]


class MatrixShape(NamedTuple):
    """A linear layer's matrix; `bias`: it has one."""

    inputs: int
    outputs: int
    bias: bool = False

    @property
    def weights(self) -> int:
        """How many there are."""
        return self.inputs * self.outputs

    @property
    def quantizable(self) -> bool:
        """Whether the format can hold it."""
        return self.inputs % INPUT_MULTIPLE == 0

    @property
    def stored_outputs(self) -> int:
        """Outputs with those that the format fills up."""
        return -(-self.outputs // OUTPUT_MULTIPLE) * OUTPUT_MULTIPLE


def cut(inputs: int, size: int) -> tuple[int, ...]:
    """Inputs of each group where all have `size` but the last, which takes what is left."""
    whole, left = divmod(inputs, size)
    return (size,) * whole + ((left,) if left else ())


def group_sizes(inputs: int) -> tuple[int, ...]:
    """The sizes of groups that a layer has room for."""
    return tuple(size for size in GROUP_SIZES if size <= inputs) or GROUP_SIZES[:1]


def uniform(inputs: int, bits: int, size: int) -> Groups:
    """Groups of one width."""
    return tuple(RowGroup(bits, one) for one in cut(inputs, size))


def by_shares(inputs: int, shares: Sequence[tuple[int, float]], sizes: Mapping[int, int]) -> Groups:
    """ExLlama's rule: of each width (bits, share) so many whole groups of `sizes[bits]` as hold its share, rounded up; the
    last width takes what is left."""
    groups: list[RowGroup] = []
    left = inputs
    for bits, share in shares:
        wanted = min(left, math.ceil(min(inputs * share, left) / sizes[bits]) * sizes[bits])
        groups += uniform(wanted, bits, sizes[bits])
        left -= wanted
    return (*groups, *uniform(left, shares[-1][0], sizes[shares[-1][0]]))


def stored_bits(groups: Groups, shape: MatrixShape) -> int:
    """Bits that a matrix takes in the file with all that stands beside its codes."""
    codes = sum(group.bits * group.inputs for group in groups) * shape.stored_outputs
    beside = len(groups) * (_GROUP_BITS + STEP_BITS * shape.stored_outputs)
    return codes + beside + _INPUT_BITS * shape.inputs + bias_bits(shape)


def least_bits(shape: MatrixShape) -> int:
    """The fewest bits that a layer can take."""
    if not shape.quantizable:
        return float_bits(shape)
    return min(stored_bits(uniform(shape.inputs, WIDTHS[-1], size), shape) for size in group_sizes(shape.inputs))


def float_bits(shape: MatrixShape) -> int:
    """Bits that a matrix takes in fp16."""
    return _FLOAT_BITS * shape.weights + bias_bits(shape)


def bias_bits(shape: MatrixShape) -> int:
    """Bits that its bias takes."""
    return _FLOAT_BITS * shape.outputs * shape.bias


def runs(groups: Groups) -> list[tuple[int, int, int]]:
    """Groups as (bits, inputs of one, how many), for people and files."""
    found: list[tuple[int, int, int]] = []
    for bits, inputs in groups:
        if found and found[-1][:2] == (bits, inputs):
            found[-1] = bits, inputs, found[-1][2] + 1
        else:
            found.append((bits, inputs, 1))
    return found
