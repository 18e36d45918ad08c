"""EXL3 (ExLlamaV3 1.4.1): weights on a trellis, between two rotations; 1 to 8 bits (docs/concepts/exl3.md).

`KEY.trellis` int16 [inputs / 16, outputs / 16, 16 · bits] holds a ring of bits for each tile of 16 × 16 weights. `suh` fp16
[inputs] and `svh` fp16 [outputs] are signs times scales; older files have signs alone, `su` int16 [inputs / 16] and `sv`. A
scalar `mul1` or `mcg` names the codebook, "3inst" without either. Inputs and outputs are filled up to multiples of 128.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch

from shoal.errors import CheckpointError
from shoal.model.quant.stored_tensors import Array, Stored, floats, integers

WIDTHS = range(1, 9)
PARTS = ("trellis", "suh", "svh", "su", "sv", "mul1", "mcg")
TILE = 16
ROTATION = 128
"""Inputs, and outputs, that one Hadamard matrix mixes; both are filled up to multiples of it."""

STATE_BITS = 16
WORD_BITS = 32


class TrellisMatrix(NamedTuple):
    """A matrix [outputs, inputs] on a trellis.

    `words` uint32 [filled inputs / 16, filled outputs / 16, 8 · bits] are the tiles' rings; `input_scales` and
    `output_scales` are fp16 of the filled sizes. `key` is the layer's name, for errors.
    """

    key: str
    shape: tuple[int, int]
    words: Array
    codebook: str
    input_scales: Array
    output_scales: Array

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return int(self.words.shape[2]) // (TILE * TILE // WORD_BITS)

    @property
    def bits_per_weight(self) -> float:
        """Bits that a weight takes, with the scales and with what is filled up."""
        stored = self.words.nbytes + self.input_scales.nbytes + self.output_scales.nbytes
        return 8 * stored / (self.shape[0] * self.shape[1])

    def dequantized(self) -> torch.Tensor:
        """The weights [outputs, inputs] in fp16. Raises CheckpointError where fp16 has no such numbers.

        Before scales every sum is a whole number of 2⁻¹⁸ below 2¹⁶, which fp64 holds exactly. So the order of summation, and
        with it the machine, does not change a bit. The scaled sums are rounded to fp16 once.
        """
        (outputs, inputs), turn = self.shape, torch.from_numpy(hadamard(ROTATION))
        by_output = self.output_scales.astype(np.float64)[:, None]
        by_input = self.input_scales.astype(np.float64) / ROTATION  # of either side 1 / √128
        out = np.empty((outputs, inputs), np.float16)
        for first in range(0, outputs, ROTATION):  # what is needed beside the result stays small
            tiles = self.words[:, first // TILE : (first + ROTATION) // TILE]
            inner = torch.from_numpy(rotated_weights(tiles, self.codebook))
            turned = ((turn @ inner).view(ROTATION, -1, ROTATION) @ turn).view(ROTATION, -1).numpy()
            turned *= by_input
            turned *= by_output[first : first + ROTATION]
            rows = out[first : first + ROTATION]
            with np.errstate(over="ignore"):
                rows[:] = turned[: len(rows), :inputs]
            if not np.isfinite(rows).all():
                raise CheckpointError(f"{self.key} has weights that are too large for fp16")
        return torch.from_numpy(out)


def dequantize(tensors: Stored, key: str, outputs: int | None = None, inputs: int | None = None) -> Array:
    """The weights [inputs, outputs] in fp16 of one layer, as its tensors lie in the file.

    `outputs`, `inputs`: how many there are without those that the format fills up. Raises CheckpointError naming what is
    wrong.
    """
    return read(tensors, key, outputs, inputs).dequantized().T.contiguous().numpy()


def read(tensors: Stored, key: str, outputs: int | None = None, inputs: int | None = None) -> TrellisMatrix:
    """One layer's matrix; raises CheckpointError naming what is wrong."""
    trellis = integers(tensors, f"{key}.trellis", np.int16, 3)
    filled_inputs, filled_outputs = _filled(f"{key}.trellis", trellis.shape)
    shape = (
        _true_size(key, "outputs", outputs, filled_outputs),
        _true_size(key, "inputs", inputs, filled_inputs),
    )
    return TrellisMatrix(
        key,
        shape,
        np.ascontiguousarray(trellis).view("<u4"),
        _codebook(tensors, key),
        _scales(tensors, key, "su", filled_inputs),
        _scales(tensors, key, "sv", filled_outputs),
    )


def rotated_weights(words: Array, codebook: str) -> Array:
    """Rings [tile rows, tile columns, 8 · bits] in uint32 → what they code, in fp64 [outputs, inputs], not yet turned."""
    rows, columns, count = words.shape
    word, shift = _windows(count * WORD_BITS // (TILE * TILE))
    # Each word behind the one before it in the ring: a state of 16 bits lies in one of these pairs.
    pairs = np.roll(words, 1, axis=2).astype(np.uint64) << np.uint64(WORD_BITS) | words
    states = (pairs[:, :, word] >> shift).astype(np.uint16)
    placed = states.reshape(rows, columns, TILE, TILE).transpose(1, 3, 0, 2).reshape(columns * TILE, rows * TILE)
    return CODEBOOKS[codebook]()[placed]


def hadamard(size: int) -> Array:
    """Sylvester's matrix of ±1 in fp64, in natural order; `size` is a power of two."""
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix


@functools.cache
def _windows(bits: int) -> tuple[Array, Array]:
    """For each place of a tile, row after row: the word of the ring in which its state ends, and the bits below that."""
    code = np.empty((TILE, TILE), np.int64)
    lane, index = np.divmod(np.arange(TILE * TILE), 8)
    code[2 * (lane % 4) + np.array([0, 1, 8, 9])[index % 4], lane // 4 + 8 * (index // 4)] = np.arange(TILE * TILE)
    word, last = np.divmod((code.ravel() + 1) * bits - 1, WORD_BITS)
    return word, (WORD_BITS - 1 - last).astype(np.uint64)


def _filled(name: str, shape: tuple[int, ...]) -> tuple[int, int]:
    """Inputs and outputs of the tiles; raises CheckpointError for what no writer makes."""
    inputs, outputs = shape[0] * TILE, shape[1] * TILE
    if not inputs or not outputs or inputs % ROTATION or outputs % ROTATION:
        raise CheckpointError(
            f"{name} of {list(shape)} has {inputs} inputs and {outputs} outputs, not multiples of {ROTATION}"
        )
    bits, left = divmod(shape[2], TILE)
    if left or bits not in WIDTHS:
        raise CheckpointError(f"{name} of {list(shape)} has {shape[2] / TILE:g} bits for a weight, which is not 1 to 8")
    return inputs, outputs


def _true_size(key: str, what: str, wanted: int | None, filled: int) -> int:
    size = filled if wanted is None else wanted
    if not 0 <= filled - size < ROTATION:
        raise CheckpointError(f"{key} has {filled} {what}, which are not {size} filled up to a multiple of {ROTATION}")
    return size


def _codebook(tensors: Stored, key: str) -> str:
    flags = [name for name in FLAGS if f"{key}.{name}" in tensors]
    if len(flags) > 1:
        raise CheckpointError(f"{key} has two codebooks: {' and '.join(flags)}")
    for name in flags:  # that it is there is all that is read of it
        flag = f"{key}.{name}"
        if integers(tensors, flag, np.int32, len(tensors[flag].shape)).size != 1:
            raise CheckpointError(f"{flag} of {list(tensors[flag].shape)} is not one number")
    return flags[0] if flags else WITHOUT_FLAG


def _scales(tensors: Stored, key: str, side: str, count: int) -> Array:
    """Signs times scales of one side, "su" or "sv", in fp16 [count].

    Zero is the scale of an output of zeros; so a layer of zeros has no other one in `svh`. No writer makes such a `suh`.
    """
    signs, scales = f"{key}.{side}", f"{key}.{side}h"
    if (signs in tensors) == (scales in tensors):
        raise CheckpointError(f"of {scales} and {signs} there is {'both' if signs in tensors else 'neither'}, not one")
    if scales in tensors:
        values: Array = floats(tensors, scales, [count], [torch.float16]).numpy()
        if side == "su" and not values.any():
            raise CheckpointError(f"{scales} has no scale but zero")
        return values
    words = integers(tensors, signs, np.int16, 1)
    if len(words) != count // TILE:
        raise CheckpointError(f"{signs} has {TILE * len(words)} signs, not {count}")
    bits = words.view(np.uint16)[:, None] >> np.arange(TILE, dtype=np.uint16) & 1
    return (1 - 2 * bits.astype(np.float16)).reshape(count)


@functools.cache
def _summed_bytes() -> Array:
    """ "mul1": the number of each state, fp64 [2¹⁶]. The product and the sum are exact before they become fp16."""
    states = np.arange(1 << STATE_BITS, dtype=np.uint32) * np.uint32(0x83DCD12D)
    total = states.view(np.uint8).reshape(-1, 4).sum(1, dtype=np.int64)
    factor, offset = np.array([0x1EEE, 0xC931], np.uint16).view(np.float16).astype(np.float64)
    return _kept(((1024 + total) * factor + offset).astype(np.float16))


def _summed_halves(factor: int, offset: int) -> Array:
    """ "mcg" and "3inst": the number of each state as the fp16 sum of two halves of a word, fp64 [2¹⁶]."""
    states = np.arange(1 << STATE_BITS, dtype=np.uint32) * np.uint32(factor) + np.uint32(offset)
    halves = (states & np.uint32(0x8FFF8FFF) ^ np.uint32(0x3B603B60)).view(np.float16).reshape(-1, 2)
    return _kept(halves[:, 0] + halves[:, 1])


def _kept(values: Array) -> Array:
    table = values.astype(np.float64)
    table.setflags(write=False)  # it is shared
    return table


FLAGS = ("mul1", "mcg")
WITHOUT_FLAG = "3inst"
CODEBOOKS: Mapping[str, Callable[[], Array]] = {
    "mul1": _summed_bytes,
    "mcg": functools.cache(functools.partial(_summed_halves, 0xCBAC1FED, 0)),
    WITHOUT_FLAG: functools.cache(functools.partial(_summed_halves, 89226354, 64248484)),
}
