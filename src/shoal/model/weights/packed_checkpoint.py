"""Checkpoints whose tensors are packed in others: they are read as the numbers that they stand for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import msgspec
from torch import Tensor

from shoal.model.kernels.quantized import Matrix
from shoal.model.quant.packed_matrix import PackedMatrix
from shoal.model.weights.checkpoint import Checkpoint, TensorInfo
from shoal.model.weights.quantization_note import QuantizationNote
from shoal.model.weights.safetensors import DTYPES


class PackedTensor(NamedTuple):
    """A tensor as it is asked for, the stored tensors that it is made of, and how (None: it is the one that is stored)."""

    info: TensorInfo
    parts: tuple[str, ...]
    restore: Callable[[Sequence[Tensor]], Matrix] | None = None


def stored_as_is(name: str, info: TensorInfo) -> PackedTensor:
    """A tensor that is not packed."""
    return PackedTensor(info, (name,))


class PackedCheckpoint(Checkpoint):
    """A checkpoint over another one; `tensors` are those that it offers, by name. `config`: where it differs."""

    def __init__(
        self, inner: Checkpoint, tensors: Mapping[str, PackedTensor], config: Mapping[str, object] | None = None
    ) -> None:
        self._inner = inner
        self._config = inner.config if config is None else config
        self._packed = tensors
        self._infos = {name: _with_bits(one, inner.tensors) for name, one in tensors.items()}

    @property
    def source(self) -> str:
        return self._inner.source

    @property
    def name(self) -> str:
        return self._inner.name

    @property
    def revision(self) -> str:
        return self._inner.revision

    @property
    def config(self) -> Mapping[str, object]:
        return self._config

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        return self._infos

    @property
    def note(self) -> QuantizationNote:
        return self._inner.note

    @property
    def bytes_read(self) -> int:
        return self._inner.bytes_read

    def read(self, name: str) -> Tensor:
        """One tensor; those that are packed as floats."""
        matrix = self.matrix(name)
        return matrix.dequantized() if isinstance(matrix, PackedMatrix) else matrix

    def matrix(self, name: str) -> Matrix:
        packed = self._packed.get(name)
        if packed is None or packed.restore is None:
            return self._inner.matrix(name)
        return packed.restore([self._inner.read(part) for part in packed.parts])

    def sample(self, name: str, size_bytes: int) -> bytes:
        """The first bytes of a tensor, or of the first part of one that is packed, as they are stored."""
        packed = self._packed.get(name)
        return self._inner.sample(name if packed is None else packed.parts[0], size_bytes)


def _with_bits(packed: PackedTensor, stored: Mapping[str, TensorInfo]) -> TensorInfo:
    """A tensor's dtype and shape, and how many bits its parts take for each of its numbers."""
    numbers = math.prod(packed.info.shape)
    if packed.restore is None or not numbers:
        return packed.info
    bits = sum(8 * DTYPES[stored[part].dtype].itemsize * math.prod(stored[part].shape) for part in packed.parts)
    return msgspec.structs.replace(packed.info, bits=bits / numbers)
