"""A GGUF file's tensors under their own names, dequantized to fp32 by the `gguf` package."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from torch import Tensor

from shoal.errors import CheckpointError, UnsupportedModel
from shoal.model.weights.byte_source import ByteSource
from shoal.model.weights.checkpoint import TensorInfo
from shoal.model.weights.gguf_header import GgufHeader, read_header, tensor_bytes

_FLOATS = {0: "F32", 1: "F16", 30: "BF16", 28: "F64"}


class GgufFile:
    """Metadata and tensors. Only the header is read at once."""

    def __init__(self, source: ByteSource) -> None:
        self.source = source
        self._types = {kind.value: kind for kind in GGMLQuantizationType}
        self._sizes = {kind.value: sizes for kind, sizes in GGML_QUANT_SIZES.items()}
        header: GgufHeader = read_header(source, self._sizes)
        self.metadata: Mapping[str, Any] = header.metadata
        self.header_bytes = header.size_bytes
        self._tensors = header.tensors

    @property
    def name(self) -> str:
        """What to call it in errors."""
        return self.source.name

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
        return TensorInfo(_FLOATS.get(tensor.type_id, self._types[tensor.type_id].name), tensor.shape)

    def read(self, name: str, index: int | None = None) -> Tensor:
        """A tensor in fp32, or one along its slowest dimension, of which only the bytes are read.

        Raises CheckpointError for a name that is not there, UnsupportedModel for a type that cannot be dequantized.
        """
        shape = self.info(name).shape
        tensor = self._tensors[name]
        start, length = tensor.offset, tensor_bytes(tensor, self._sizes)
        if index is not None:
            shape, length = shape[1:], length // shape[0]
            start += index * length
        raw = np.frombuffer(self.source.read(start, length), dtype=np.uint8)
        try:
            numbers = dequantize(raw.reshape(*shape[:-1], -1), self._types[tensor.type_id])
        except NotImplementedError as error:
            kind = self._types[tensor.type_id].name
            raise UnsupportedModel(f"{self.source.name}: the gguf package cannot dequantize {kind} ({name})") from error
        return torch.from_numpy(np.ascontiguousarray(numbers, dtype=np.float32)).view(shape)

    def sample(self, name: str, size_bytes: int) -> bytes:
        """The first bytes of a tensor as they are stored; raises CheckpointError."""
        self.info(name)
        tensor = self._tensors[name]
        return bytes(self.source.read(tensor.offset, min(size_bytes, tensor_bytes(tensor, self._sizes))))
