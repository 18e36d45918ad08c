"""A GGUF file's tensors under their own names, as fp32; types that `ggml` does not know by the `gguf` package."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from torch import Tensor

from shoal.errors import CheckpointError, UnsupportedModel
from shoal.model.kernels.quantized import Matrix
from shoal.model.quant import ggml
from shoal.model.quant.packed_matrix import PackedMatrix
from shoal.model.weights.byte_source import ByteSource
from shoal.model.weights.checkpoint import TensorInfo
from shoal.model.weights.gguf_header import GgufHeader, GgufTensor, read_header, tensor_bytes

_FLOATS = {0: "F32", 1: "F16", 30: "BF16", 28: "F64"}


class GgufFile:
    """Metadata and tensors of a file that may lie in several parts, in order. Only their headers are read at once."""

    def __init__(self, *parts: ByteSource) -> None:
        self.source = parts[0]
        self._parts = parts
        self._types = {kind.value: kind for kind in GGMLQuantizationType}
        self._sizes = {kind.value: sizes for kind, sizes in GGML_QUANT_SIZES.items()}
        headers = [read_header(part, self._sizes) for part in parts]
        self.metadata: Mapping[str, Any] = headers[0].metadata
        self._header_bytes = headers[0].size_bytes
        self._tensors: dict[str, GgufTensor] = {}
        self._homes: dict[str, ByteSource] = {}
        for number, (part, header) in enumerate(zip(parts, headers, strict=True)):
            _check_part(part, header, number, len(parts))
            for name, tensor in header.tensors.items():
                if name in self._tensors:
                    raise CheckpointError(f"tensor {name[:100]} is in {self._homes[name].name} and in {part.name}")
                self._tensors[name], self._homes[name] = tensor, part
        promised = self.metadata.get("split.tensors.count")
        if len(parts) > 1 and promised != len(self._tensors):
            raise CheckpointError(f"{self.name}: its parts have {len(self._tensors)} tensors, and claim {promised}")

    @property
    def name(self) -> str:
        """What to call it in errors."""
        return self.source.name

    @property
    def bytes_read(self) -> int:
        """Bytes of headers and tensors read so far."""
        return sum(part.bytes_read for part in self._parts)

    def header(self) -> bytes:
        """The bytes before the first part's tensors."""
        return bytes(self.source.read(0, self._header_bytes))

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, slowest dimension first; raises CheckpointError."""
        return self.info(name).shape

    def info(self, name: str) -> TensorInfo:
        """A tensor's type (as GGUF calls it) and its shape, slowest dimension first; raises CheckpointError."""
        if name not in self._tensors:
            raise CheckpointError(f"{self.source.name} has no tensor {name}")
        tensor = self._tensors[name]
        if tensor.type_id in _FLOATS:
            return TensorInfo(_FLOATS[tensor.type_id], tensor.shape)
        (numbers, size_bytes), kind = self._sizes[tensor.type_id], self._types[tensor.type_id].name
        return TensorInfo(kind, tensor.shape, 8 * size_bytes / numbers, kind in ggml.KINDS and len(tensor.shape) >= 2)

    def read(self, name: str, index: int | None = None) -> Tensor:
        """A tensor in fp32, or one along its slowest dimension, of which only the bytes are read.

        Raises CheckpointError for a name that is not there, UnsupportedModel for a type that cannot be dequantized.
        """
        tensor = self.matrix(name, index)
        return tensor.dequantized() if isinstance(tensor, PackedMatrix) else tensor

    def matrix(self, name: str, index: int | None = None) -> Matrix:
        """The same, but the codes of a matrix whose type `ggml` knows."""
        shape = self.info(name).shape
        tensor = self._tensors[name]
        start, length = tensor.offset, tensor_bytes(tensor, self._sizes)
        if index is not None:
            shape, length = shape[1:], length // shape[0]
            start += index * length
        raw = np.frombuffer(self._homes[name].read(start, length), dtype=np.uint8)
        kind = self._types[tensor.type_id].name
        if kind in ggml.KINDS:
            matrix = ggml.read(raw, kind, math.prod(shape[:-1]), shape[-1])
            return matrix if len(shape) == 2 else matrix.dequantized().view(shape)
        try:
            numbers = dequantize(raw.reshape(*shape[:-1], -1), self._types[tensor.type_id])
        except NotImplementedError as error:
            raise UnsupportedModel(f"{self.source.name}: the gguf package cannot dequantize {kind} ({name})") from error
        return torch.from_numpy(np.ascontiguousarray(numbers, dtype=np.float32)).view(shape)

    def sample(self, name: str, size_bytes: int) -> bytes:
        """The first bytes of a tensor as they are stored; raises CheckpointError."""
        self.info(name)
        tensor = self._tensors[name]
        length = min(size_bytes, tensor_bytes(tensor, self._sizes))
        return bytes(self._homes[name].read(tensor.offset, length))


def _check_part(part: ByteSource, header: GgufHeader, number: int, count: int) -> None:
    """Raise CheckpointError unless a file is the part that it should be; one that has none says nothing or 1."""
    said = header.metadata.get("split.no", 0), header.metadata.get("split.count", 0) or 1
    if said != (number, count):
        what = f"part {said[0] + 1 if isinstance(said[0], int) else said[0]} of {said[1]}"
        hint = "" if count > 1 else ": all parts are needed, under names as NAME-00001-of-00003.gguf"
        raise CheckpointError(f"{part.name} says that it is {what}, not part {number + 1} of {count}{hint}")
