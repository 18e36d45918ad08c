"""Blocks and ends from a checkpoint: only their tensors are read."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from shoal.errors import CheckpointError, UsageError
from shoal.kernels.tiles import RowLinear
from shoal.nn.block import Block, Ends, ModelConfig
from shoal.nn.families import family
from shoal.nn.layers import RmsNorm
from shoal.types import Span
from shoal.weights.checkpoint import Checkpoint

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

Progress = Callable[[int, int], None]


def weight_dtype(name: str) -> torch.dtype:
    """The torch dtype of a `--dtype`; raises UsageError."""
    if name not in DTYPES:
        raise UsageError(f"there is no dtype {name!r}: choose one of {', '.join(DTYPES)}")
    return DTYPES[name]


def _read(
    checkpoint: Checkpoint, shapes: Mapping[str, tuple[str, tuple[int, ...]]], dtype: torch.dtype, device: str = "cpu"
) -> dict[str, Tensor]:
    """Tensors by role. Shapes are checked before anything is read; norms and biases stay in fp32."""
    for name, shape in shapes.values():
        info = checkpoint.tensors.get(name)
        if info is None:
            raise CheckpointError(f"{checkpoint.source} has no tensor {name}")
        if info.shape != shape:
            raise CheckpointError(
                f"{checkpoint.source}: tensor {name} has shape {list(info.shape)}; the configuration asks for {list(shape)}"
            )
    read: dict[str, Tensor] = {}
    for role, (name, shape) in shapes.items():
        tensor = checkpoint.read(name)
        if tensor.dtype not in FLOATS:
            raise CheckpointError(f"{checkpoint.source}: tensor {name} holds {tensor.dtype}, not floats")
        read[role] = tensor.to(device=device, dtype=dtype if len(shape) == 2 else torch.float32)
    return read


def load_blocks(
    checkpoint: Checkpoint,
    config: ModelConfig,
    span: Span,
    dtype: str = "float32",
    progress: Progress | None = None,
    device: str = "cpu",
) -> list[Block]:
    """The blocks of a span on a device, their matrices rounded to `dtype`; `progress` hears of each (done, all).

    Raises CheckpointError naming the tensor that is missing or wrong, SpanError for blocks outside the model.
    """
    span.check(config.num_blocks)
    target, described = weight_dtype(dtype), family(config.model_type)
    blocks = []
    for index in span.blocks():
        weights = _read(checkpoint, described.block_tensors(config, index), target, device)
        blocks.append(Block(config.block, weights))
        if progress is not None:
            progress(len(blocks), len(span))
    return blocks


def fetch_blocks(checkpoint: Checkpoint, config: ModelConfig, span: Span) -> None:
    """Read a span's tensors and drop them: those of the hub are kept on this machine's disk by that.

    Raises what reading them raises.
    """
    for index in span.blocks():
        for name, _ in family(config.model_type).block_tensors(config, index).values():
            checkpoint.read(name)


def load_ends(checkpoint: Checkpoint, config: ModelConfig, dtype: str = "float32") -> Ends:
    """Embedding, final norm and head. Raises CheckpointError naming the tensor that is missing or wrong."""
    weights = _read(checkpoint, family(config.model_type).end_tensors(config), weight_dtype(dtype))
    embedding = weights["embedding.weight"]
    head = RowLinear(weights.get("head.weight", embedding))
    if config.tied_head:
        embedding = head.weight
    return Ends(embedding, RmsNorm(weights["norm.weight"], config.block.norm_eps), head, config.vocab_size)


def block_digests(blocks: list[Block]) -> tuple[str, ...]:
    """16 hexadecimal digits for each block over its weights as they are used."""
    return tuple(_block_digest(block) for block in blocks)


def _block_digest(block: Block) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for linear in block.linears():
        digest.update(linear.weight.cpu().contiguous().view(torch.uint8).numpy().data)
        if linear.bias is not None:
            digest.update(linear.bias.cpu().numpy().tobytes())
    for norm in (block.attention_norm, block.mlp_norm):
        digest.update(norm.weight.cpu().numpy().tobytes())
    return digest.hexdigest()
