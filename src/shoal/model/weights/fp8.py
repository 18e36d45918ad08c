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
from shoal.model.weights.checkpoint import Checkpoint
from shoal.model.weights.packed_checkpoint import PackedTensor, stored_as_is

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


def fp8_tensors(checkpoint: Checkpoint, block: tuple[int, int]) -> dict[str, PackedTensor]:
    """The tensors of a checkpoint whose matrices are packed so; raises CheckpointError for scales that do not fit."""
    return {
        name: _matrix(checkpoint, name, block) if info.dtype == CODES else stored_as_is(name, info)
        for name, info in checkpoint.tensors.items()
        if not name.endswith(SCALE)
    }


def _matrix(checkpoint: Checkpoint, name: str, block: tuple[int, int]) -> PackedTensor:
    info, scales = checkpoint.tensors[name], checkpoint.tensors.get(name + SCALE)
    if scales is None or scales.dtype not in FLOATS or len(info.shape) != 2:
        raise CheckpointError(
            f"{checkpoint.source}: the 8-bit floats of {name} are no matrix with {name}{SCALE} in floats"
        )
    needed = tuple(-(-size // step) for size, step in zip(info.shape, block, strict=True))
    if scales.shape != needed:
        raise CheckpointError(
            f"{checkpoint.source}: {name} of {list(info.shape)} in blocks of {list(block)} has scales of "
            f"{list(scales.shape)}, not {list(needed)}"
        )
    return PackedTensor(info, (name, name + SCALE), lambda parts: dequantized(parts[0], parts[1], block))
