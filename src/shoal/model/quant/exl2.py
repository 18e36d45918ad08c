"""EXL2 (ExLlamaV2 0.3.2): groups of stored inputs with 2 to 8 bits, scales on a squared grid of four bits.

`KEY.q_weight` int32 [words, outputs] holds a string of bits for each output, group after group; `q_groups` int16 [2 · groups]
a group's bits and its first row of words; `q_scale` int32 [groups, outputs / 8] steps of four bits; `q_scale_max` fp16
[groups]; `q_invperm` int32 [inputs]. The outputs are filled up to a multiple of 32.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from shoal.errors import CheckpointError
from shoal.model.quant.bit_strings import WORD_BITS, unpack_across, unpack_down
from shoal.model.quant.packed_matrix import Levels, PackedMatrix, Section, unit_of
from shoal.model.quant.stored_tensors import Array, Stored, floats, integers, permutation, unsigned

WIDTHS = (2, 3, 4, 5, 6, 8)
PARTS = ("q_weight", "q_groups", "q_scale", "q_scale_max", "q_invperm")
STEP_BITS = 4
LEAST_INPUTS = 16
"""A group that is not the last has a multiple of so many inputs."""


class _Group(NamedTuple):
    bits: int
    inputs: int


def dequantize(tensors: Stored, key: str, outputs: int | None = None) -> Array:
    """The weights [inputs, outputs] in fp16 of one layer, as its tensors lie in the file.

    `outputs`: how many there are without those that the format fills up. Raises CheckpointError naming what is wrong.
    """
    return read(tensors, key, outputs).dequantized().T.contiguous().numpy()


def read(tensors: Stored, key: str, outputs: int | None = None) -> PackedMatrix:
    """One layer's matrix; raises CheckpointError naming what is wrong."""
    words = unsigned(integers(tensors, f"{key}.q_weight", np.int32, 2))
    inverse = permutation(tensors, f"{key}.q_invperm", len(integers(tensors, f"{key}.q_invperm", np.int32, 1)))
    groups = _groups(tensors, key, len(words), len(inverse))
    steps = _steps(tensors, key, len(groups), words.shape[1])
    maxima = floats(tensors, f"{key}.q_scale_max", [len(groups)], [torch.float16])
    if bool((maxima < 0).any()):
        raise CheckpointError(f"{key}.q_scale_max has negative numbers")
    matrix = _assembled(words, groups, steps, unit_of(maxima))._replace(order=torch.from_numpy(np.argsort(inverse)))
    return matrix if outputs is None else matrix.outputs(0, _true_outputs(key, outputs, words.shape[1]))


def _true_outputs(key: str, wanted: int, stored: int) -> int:
    if not 0 <= stored - wanted < WORD_BITS:
        raise CheckpointError(f"{key} has {stored} outputs, which are not {wanted} filled up to a multiple of 32")
    return wanted


def _groups(tensors: Stored, key: str, num_words: int, inputs: int) -> list[_Group]:
    """Each group's width, place and size; raises CheckpointError for what no writer makes."""
    name = f"{key}.q_groups"
    pairs = integers(tensors, name, np.int16, 1).view(np.uint16).astype(np.int64)
    if not len(pairs) or len(pairs) % 2:
        raise CheckpointError(f"{name} has {len(pairs)} numbers: there are two for each group")
    widths, firsts = pairs[0::2], pairs[1::2]
    if not set(widths.tolist()) <= set(WIDTHS) or bool((np.diff(widths) > 0).any()):
        raise CheckpointError(f"{name} has widths that are not among {WIDTHS} and falling: {widths[:8].tolist()} …")
    counts = np.diff(np.append(firsts, num_words))
    if firsts[0] != 0 or bool((counts <= 0).any()):
        raise CheckpointError(f"{name} has groups that do not follow each other from row 0 to {num_words}")
    sizes, left = np.divmod(counts * WORD_BITS, widths)
    if left.any() or (sizes[:-1] % LEAST_INPUTS).any() or sizes.sum() != inputs:
        raise CheckpointError(f"{name} has groups of {sizes[:8].tolist()} … inputs, which are not {inputs} in all")
    return [_Group(int(bits), int(size)) for bits, size in zip(widths, sizes, strict=True)]


def _steps(tensors: Stored, key: str, groups: int, outputs: int) -> Array:
    name = f"{key}.q_scale"
    stored = integers(tensors, name, np.int32, 2)
    if outputs % 8 or stored.shape != (groups, outputs // 8):
        raise CheckpointError(f"{name} is of {list(stored.shape)}, not of {[groups, outputs // 8]}: four bits for each")
    return unpack_across(unsigned(stored), STEP_BITS, outputs)


def _assembled(words: Array, groups: list[_Group], steps: Array, units: Tensor) -> PackedMatrix:
    codes, sections, at, word = [], [], 0, 0
    for (bits, size), inputs in _runs(groups):
        count, end = -(-inputs // size), word + inputs * bits // WORD_BITS
        codes.append(unpack_down(words[word:end], bits, inputs))
        some = torch.from_numpy(np.ascontiguousarray(steps[at : at + count].T))
        scales = Levels(units[None, at : at + count], some, squared=True)
        sections.append(Section(inputs, bits, size, scales, zero=1 << (bits - 1)))
        at, word = at + count, end
    stored = np.ascontiguousarray(np.concatenate(codes).T)
    return PackedMatrix(torch.from_numpy(stored), tuple(sections), dtype=torch.float16)


def _runs(groups: list[_Group]) -> list[tuple[_Group, int]]:
    """Groups of one kind that follow each other, and their inputs; the last group of a matrix may be a shorter one."""
    runs: list[tuple[_Group, int]] = []
    for group in groups:
        kind, inputs = runs[-1] if runs else (group, 0)
        shorter = group is groups[-1] and group.bits == kind.bits and group.inputs < kind.inputs
        if runs and (group == kind or shorter):
            runs[-1] = kind, inputs + group.inputs
        else:
            runs.append((group, group.inputs))
    return runs
