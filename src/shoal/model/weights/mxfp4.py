"""MXFP4 tensors in safetensors, as gpt-oss has them (OCP Microscaling Formats 1.0): 4-bit floats, a scale for 32 of them.

X of HF's name is stored as X_blocks [.., rows, columns / 32, 16] in bytes of two codes, the lower four bits first, and X_scales
[.., rows, columns / 32] in powers of two with a bias of 127. Rows are X's last dimension.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from shoal.errors import CheckpointError
from shoal.model.weights.checkpoint import Checkpoint, TensorInfo

VALUES = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0])
BLOCKS, SCALES = "_blocks", "_scales"
BLOCK_BYTES = 16


def is_mxfp4(config: Mapping[str, Any]) -> bool:
    """Whether a checkpoint's configuration says that it is quantized so."""
    quantization = config.get("quantization_config")
    return isinstance(quantization, Mapping) and quantization.get("quant_method") == "mxfp4"


def dequantized(blocks: Tensor, scales: Tensor) -> Tensor:
    """Codes [.., n, 16] and scales [.., n] in uint8 → numbers [.., 32 n] in fp32, each a 4-bit float times a power of two."""
    codes = torch.stack([blocks & 15, blocks >> 4], -1).flatten(-2).to(torch.int32)
    exponents = (scales.to(torch.int32) - 127).unsqueeze(-1)
    return torch.ldexp(VALUES[codes], exponents).flatten(-2)


class Mxfp4Checkpoint:
    """A checkpoint whose pairs of blocks and scales are read as the tensors that they stand for."""

    def __init__(self, inner: Checkpoint) -> None:
        self._inner = inner
        self.source, self.name, self.revision = inner.source, inner.name, inner.revision
        self.config = inner.config
        self.tensors: dict[str, TensorInfo] = {}
        for name, info in inner.tensors.items():
            if name.endswith(BLOCKS):
                self.tensors[name.removesuffix(BLOCKS)] = self._pair(name.removesuffix(BLOCKS))
            elif not name.endswith(SCALES):
                self.tensors[name] = info

    def _pair(self, name: str) -> TensorInfo:
        blocks, scales = (self._inner.tensors.get(name + part) for part in (BLOCKS, SCALES))
        if blocks is None or scales is None or {blocks.dtype, scales.dtype} != {"U8"} or len(blocks.shape) != 4:
            raise CheckpointError(f"{self.source}: tensor {name} has no blocks of 16 bytes with scales in MXFP4")
        experts, rows, count, size = blocks.shape
        if scales.shape != (experts, rows, count) or size != BLOCK_BYTES:
            raise CheckpointError(
                f"{self.source}: the MXFP4 blocks {list(blocks.shape)} and scales {list(scales.shape)} of {name} do not fit"
            )
        return TensorInfo("MXFP4", (experts, 2 * BLOCK_BYTES * count, rows))

    @property
    def bytes_read(self) -> int:
        """Checkpoint: bytes of headers and tensors read so far."""
        return self._inner.bytes_read

    def read(self, name: str) -> Tensor:
        """Checkpoint: one tensor, those in MXFP4 in fp32."""
        if self.tensors.get(name, TensorInfo("", ())).dtype != "MXFP4":
            return self._inner.read(name)
        both = dequantized(self._inner.read(name + BLOCKS), self._inner.read(name + SCALES))
        return both.transpose(1, 2)

    def sample(self, name: str, size_bytes: int) -> bytes:
        """Checkpoint: the first bytes of a tensor as they are stored."""
        info = self.tensors.get(name)
        return self._inner.sample(name + BLOCKS if info is not None and info.dtype == "MXFP4" else name, size_bytes)
