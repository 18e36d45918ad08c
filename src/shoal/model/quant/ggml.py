"""GGUF's quantized types (llama.cpp's ggml) as they lie in a file: blocks of 32 or 256 inputs, one output after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from shoal.errors import CheckpointError
from shoal.model.quant.packed_matrix import Levels, PackedMatrix, Section

Array = npt.NDArray[Any]

IQ4_NL = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
LARGE, SMALL = 256, 32


class _Parts(NamedTuple):
    """What blocks [n, bytes] hold: codes [n, inputs], and what stands beside them [n, ..]."""

    codes: Array
    scale: Array
    minimum: Array | None = None
    steps: Array | None = None
    minimum_steps: Array | None = None


class Kind(NamedTuple):
    """A type: inputs and bytes of a block, and how its codes stand for weights."""

    inputs: int
    size_bytes: int
    bits: int
    group: int
    split: Callable[[Array], _Parts]
    zero: int = 0
    table: tuple[int, ...] | None = None


def read(data: Array, kind: str, outputs: int, inputs: int) -> PackedMatrix:
    """A matrix [outputs, inputs] of a type by its name ("Q4_K") from its bytes. Raises CheckpointError for bytes that are not
    as many, and for scales that are not finite."""
    known = KINDS[kind]
    blocks = outputs * (inputs // known.inputs)
    if inputs % known.inputs or data.size != blocks * known.size_bytes:
        raise CheckpointError(f"{data.size} bytes are no matrix of {[outputs, inputs]} in {kind}")
    parts = known.split(data.reshape(blocks, known.size_bytes))
    per_unit = known.inputs // known.group
    steps, minimum_steps = (
        None if one is None else _beside(one, outputs) for one in (parts.steps, parts.minimum_steps)
    )
    minima = None if parts.minimum is None else Levels(_beside(parts.minimum, outputs), minimum_steps, per_unit)
    scales = Levels(_beside(parts.scale, outputs), steps, per_unit)
    for level in (scales, minima):
        if level is not None and not bool(torch.isfinite(level.units).all()):
            raise CheckpointError(f"a matrix in {kind} has scales that are not finite")
    section = Section(inputs, known.bits, known.group, scales, known.zero, None, minima, known.table)
    return PackedMatrix(torch.from_numpy(parts.codes.reshape(outputs, inputs)), (section,))


def _beside(numbers: Array, outputs: int) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(numbers).reshape(outputs, -1))


def _half(blocks: Array, at: int) -> Array:
    return np.ascontiguousarray(blocks[:, at : at + 2]).view(np.float16)


def _nibbles(codes: Array) -> Array:
    """The low halves of all bytes, then the high ones."""
    return np.concatenate([codes & 15, codes >> 4], -1)


def _fifth_bits(blocks: Array, at: int) -> Array:
    """32 bits of four bytes, as 0 or 16."""
    return np.unpackbits(blocks[:, at : at + 4], axis=1, bitorder="little") << 4


def _planes(codes: Array, bits: int) -> Array:
    """[.., n] bytes → [.., 8 / bits, n]: the lowest `bits` of all bytes, then the next ones."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    return codes[..., None, :] >> shifts & ((1 << bits) - 1)


def _q4_0(blocks: Array) -> _Parts:
    return _Parts(_nibbles(blocks[:, 2:]), _half(blocks, 0))


def _q4_1(blocks: Array) -> _Parts:
    return _Parts(_nibbles(blocks[:, 4:]), _half(blocks, 0), -_half(blocks, 2))


def _q5_0(blocks: Array) -> _Parts:
    return _Parts(_nibbles(blocks[:, 6:]) | _fifth_bits(blocks, 2), _half(blocks, 0))


def _q5_1(blocks: Array) -> _Parts:
    return _Parts(_nibbles(blocks[:, 8:]) | _fifth_bits(blocks, 4), _half(blocks, 0), -_half(blocks, 2))


def _q8_0(blocks: Array) -> _Parts:
    return _Parts(blocks[:, 2:] ^ 128, _half(blocks, 0))


def _q2_k(blocks: Array) -> _Parts:
    beside, codes = blocks[:, :16], _planes(blocks[:, 16:80].reshape(-1, 2, 32), 2)
    return _Parts(codes.reshape(-1, LARGE), _half(blocks, 80), _half(blocks, 82), beside & 15, beside >> 4)


def _q3_k(blocks: Array) -> _Parts:
    high = _planes(blocks[:, :32], 1).reshape(-1, 2, 4, 32)
    codes = _planes(blocks[:, 32:96].reshape(-1, 2, 32), 2) | high << 2
    low, upper = _nibbles(blocks[:, 96:104]), _planes(blocks[:, 104:108], 2).reshape(-1, 16)
    steps = (low | upper << 4).astype(np.int8) - 32
    return _Parts(codes.reshape(-1, LARGE), _half(blocks, 108), steps=steps.astype(np.int8))


def _six_bits(beside: Array) -> tuple[Array, Array]:
    """Twelve bytes → eight scales and eight minima of six bits."""
    scales, minima, shared = (beside[:, at : at + 4] for at in (0, 4, 8))
    return (
        np.concatenate([scales & 63, shared & 15 | scales >> 2 & 48], 1),
        np.concatenate([minima & 63, shared >> 4 | minima >> 2 & 48], 1),
    )


def _q4_k(blocks: Array) -> _Parts:
    codes = _nibbles(blocks[:, 16:].reshape(-1, 4, 32))
    return _Parts(codes.reshape(-1, LARGE), _half(blocks, 0), _half(blocks, 2), *_six_bits(blocks[:, 4:16]))


def _q5_k(blocks: Array) -> _Parts:
    high = _planes(blocks[:, 16:48], 1).reshape(-1, LARGE)
    codes = _nibbles(blocks[:, 48:].reshape(-1, 4, 32)).reshape(-1, LARGE) | high << 4
    return _Parts(codes, _half(blocks, 0), _half(blocks, 2), *_six_bits(blocks[:, 4:16]))


def _q6_k(blocks: Array) -> _Parts:
    low = _nibbles(blocks[:, :128].reshape(-1, 2, 64)).reshape(-1, 2, 4, 32)
    codes = low | _planes(blocks[:, 128:192].reshape(-1, 2, 32), 2) << 4
    return _Parts(codes.reshape(-1, LARGE), _half(blocks, 208), steps=blocks[:, 192:208].view(np.int8))


KINDS: dict[str, Kind] = {
    "Q4_0": Kind(SMALL, 18, 4, SMALL, _q4_0, zero=8),
    "Q4_1": Kind(SMALL, 20, 4, SMALL, _q4_1),
    "Q5_0": Kind(SMALL, 22, 5, SMALL, _q5_0, zero=16),
    "Q5_1": Kind(SMALL, 24, 5, SMALL, _q5_1),
    "Q8_0": Kind(SMALL, 34, 8, SMALL, _q8_0, zero=128),
    "Q2_K": Kind(LARGE, 84, 2, 16, _q2_k),
    "Q3_K": Kind(LARGE, 110, 3, 16, _q3_k, zero=4),
    "Q4_K": Kind(LARGE, 144, 4, 32, _q4_k),
    "Q5_K": Kind(LARGE, 176, 5, 32, _q5_k),
    "Q6_K": Kind(LARGE, 210, 6, 16, _q6_k, zero=32),
    "IQ4_NL": Kind(SMALL, 18, 4, SMALL, _q4_0, table=IQ4_NL),
}
"""The types that are kept as they are."""
