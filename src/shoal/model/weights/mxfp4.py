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
from shoal.model.weights.packed_checkpoint import PackedTensor, stored_as_is

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


def mxfp4_tensors(checkpoint: Checkpoint) -> dict[str, PackedTensor]:
    """The tensors of a checkpoint in which some are packed so; raises CheckpointError for pairs that do not fit."""
    tensors = {}
    for name, info in checkpoint.tensors.items():
        if name.endswith(BLOCKS):
            tensors[name.removesuffix(BLOCKS)] = _pair(checkpoint, name.removesuffix(BLOCKS))
        elif not name.endswith(SCALES):
            tensors[name] = stored_as_is(name, info)
    return tensors


def _pair(checkpoint: Checkpoint, name: str) -> PackedTensor:
    parts = (name + BLOCKS, name + SCALES)
    blocks, scales = map(checkpoint.tensors.get, parts)
    if blocks is None or scales is None or {blocks.dtype, scales.dtype} != {"U8"} or len(blocks.shape) != 4:
        raise CheckpointError(f"{checkpoint.source}: tensor {name} has no blocks of 16 bytes with scales in MXFP4")
    experts, rows, count, size = blocks.shape
    if scales.shape != (experts, rows, count) or size != BLOCK_BYTES:
        raise CheckpointError(
            f"{checkpoint.source}: the MXFP4 blocks {list(blocks.shape)} and scales {list(scales.shape)} of {name} do not fit"
        )
    info = TensorInfo("MXFP4", (experts, 2 * BLOCK_BYTES * count, rows))
    return PackedTensor(info, parts, lambda pair: dequantized(pair[0], pair[1]).transpose(1, 2))
