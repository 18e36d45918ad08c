"""A checkpoint that lies in memory, for tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, uint8

from shoal.errors import CheckpointError
from shoal.model.weights.checkpoint import Checkpoint, TensorInfo
from shoal.model.weights.quantization_note import NO_NOTE

DTYPES = {"torch.float32": "F32", "torch.bfloat16": "BF16", "torch.uint8": "U8", "torch.float8_e4m3fn": "F8_E4M3"}


class MemoryCheckpoint(Checkpoint):
    """Tensors by name, and a configuration."""

    source, name, revision, note = "memory", "Memory", "", NO_NOTE

    def __init__(self, tensors: Mapping[str, Tensor], **config: Any) -> None:
        self._held = tensors
        self._config = config
        self.read_names: list[str] = []

    @property
    def config(self) -> Mapping[str, Any]:
        return self._config

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        return {name: TensorInfo(DTYPES[str(one.dtype)], tuple(one.shape)) for name, one in self._held.items()}

    @property
    def bytes_read(self) -> int:
        return sum(self._held[name].nbytes for name in self.read_names)

    def read(self, name: str) -> Tensor:
        if name not in self._held:
            raise CheckpointError(f"memory has no tensor {name}")
        self.read_names.append(name)
        return self._held[name]

    def sample(self, name: str, size_bytes: int) -> bytes:
        return self._held[name].contiguous().view(uint8).numpy().tobytes()[:size_bytes]
