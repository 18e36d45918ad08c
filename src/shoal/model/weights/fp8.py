"""Matrices of 8-bit floats in safetensors, as DeepSeek V3 and others have them (README_WEIGHTS.md of its repository).

X.weight [rows, columns] is stored in float8_e4m3fn beside X.weight_scale_inv [rows / r, columns / c], rounded up, in floats:
a scale for each block of r × c numbers, which `weight_block_size` states. Activations stay as they are here, though
the configuration speaks of rounding them too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from shoal.errors import CheckpointError
from shoal.model.weights.checkpoint import Checkpoint, TensorInfo

CODES, FLOATS = "F8_E4M3", frozenset({"F32", "BF16", "F16"})
SCALE = "_scale_inv"


def fp8_block(config: Mapping[str, Any]) -> tuple[int, int] | None:
    """Rows and columns of a block where a configuration says that matrices are quantized so, else None."""
    given = config.get("quantization_config")
    if not isinstance(given, Mapping) or given.get("quant_method") != "fp8" or given.get("fmt", "e4m3") != "e4m3":
        return None
    block = given.get("weight_block_size")
    if not isinstance(block, list) or len(block) != 2 or not all(type(one) is int and one > 0 for one in block):
        return None
    return block[0], block[1]


def dequantized(codes: Tensor, scales: Tensor, block: tuple[int, int]) -> Tensor:
    """Codes [n, k] in float8_e4m3fn and scales [⌈n / r⌉, ⌈k / c⌉] for blocks of (r, c) → numbers [n, k] in fp32."""
    rows, columns = codes.shape
    out = codes.to(torch.float32)
    wide = scales.to(torch.float32).repeat_interleave(block[1], 1)[:, :columns]
    for index, first in enumerate(range(0, rows, block[0])):
        out[first : first + block[0]] *= wide[index]
    return out


class Fp8Checkpoint:
    """A checkpoint whose 8-bit matrices are read as the numbers that they stand for."""

    def __init__(self, inner: Checkpoint, block: tuple[int, int]) -> None:
        self._inner = inner
        self._block = block
        self.source, self.name, self.revision = inner.source, inner.name, inner.revision
        self.config = inner.config
        self.tensors: dict[str, TensorInfo] = {
            name: self._matrix(name, info) if info.dtype == CODES else info
            for name, info in inner.tensors.items()
            if not name.endswith(SCALE)
        }

    def _matrix(self, name: str, info: TensorInfo) -> TensorInfo:
        scales = self._inner.tensors.get(name + SCALE)
        if scales is None or scales.dtype not in FLOATS or len(info.shape) != 2:
            raise CheckpointError(
                f"{self.source}: the 8-bit floats of {name} are no matrix with {name}{SCALE} in floats"
            )
        needed = tuple(-(-size // step) for size, step in zip(info.shape, self._block, strict=True))
        if scales.shape != needed:
            raise CheckpointError(
                f"{self.source}: {name} of {list(info.shape)} in blocks of {list(self._block)} has scales of "
                f"{list(scales.shape)}, not {list(needed)}"
            )
        return info

    @property
    def bytes_read(self) -> int:
        """Checkpoint: bytes of headers and tensors read so far."""
        return self._inner.bytes_read

    def read(self, name: str) -> Tensor:
        """Checkpoint: one tensor, those in 8 bits in fp32."""
        info = self.tensors.get(name)
        if info is None or info.dtype != CODES:
            return self._inner.read(name)
        return dequantized(self._inner.read(name), self._inner.read(name + SCALE), self._block)

    def sample(self, name: str, size_bytes: int) -> bytes:
        """Checkpoint: the first bytes of a tensor as they are stored."""
        return self._inner.sample(name, size_bytes)
