"""Blocks and ends from a checkpoint: only their tensors are read."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor

from shoal.errors import CheckpointError, UsageError
from shoal.kernels.tiles import RowLinear
from shoal.nn.block import Block, Ends, ModelConfig, final_norm
from shoal.nn.families import Shapes, Stored, family
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


def _read(checkpoint: Checkpoint, shapes: Shapes, dtype: torch.dtype, device: str = "cpu") -> dict[str, Tensor]:
    """Tensors by role. Shapes are checked before anything is read; norms, biases and routers stay in fp32."""
    roles: dict[str, list[str]] = {}
    for role, stored in shapes.items():
        roles.setdefault(_checked_name(checkpoint, stored), []).append(role)
    read: dict[str, Tensor] = {}
    for name, parts in roles.items():  # a fused tensor is read once
        tensor = checkpoint.read(name)
        if tensor.dtype not in FLOATS:
            raise CheckpointError(f"{checkpoint.source}: tensor {name} holds {tensor.dtype}, not floats")
        for role in parts:
            take = shapes[role].take
            part = tensor if take is None else take(tensor)
            exact = part.ndim < 2 or role.startswith("router")
            read[role] = part.to(device=device, dtype=torch.float32 if exact else dtype)
    return read


def _checked_name(checkpoint: Checkpoint, stored: Stored) -> str:
    """The tensor's name in this checkpoint, which may lack the model's prefix ("transformer."); raises CheckpointError."""
    for name in (stored.name, stored.name.partition(".")[2]):
        info = checkpoint.tensors.get(name)
        if info is not None and info.shape != stored.shape:
            raise CheckpointError(
                f"{checkpoint.source}: tensor {name} has shape {list(info.shape)}; "
                f"the configuration asks for {list(stored.shape)}"
            )
        if info is not None:
            return name
    raise CheckpointError(f"{checkpoint.source} has no tensor {stored.name}")


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
        blocks.append(Block(config.block_config(index), weights))
        if progress is not None:
            progress(len(blocks), len(span))
    return blocks


def fetch_blocks(checkpoint: Checkpoint, config: ModelConfig, span: Span) -> None:
    """Read a span's tensors and drop them: those of the hub are kept on this machine's disk by that.

    Raises what reading them raises.
    """
    for index in span.blocks():
        shapes = family(config.model_type).block_tensors(config, index)
        for name in dict.fromkeys(_checked_name(checkpoint, stored) for stored in shapes.values()):
            checkpoint.read(name)


def load_ends(checkpoint: Checkpoint, config: ModelConfig, dtype: str = "float32") -> Ends:
    """Embedding, final norm and head. Raises CheckpointError naming the tensor that is missing or wrong."""
    weights = _read(checkpoint, family(config.model_type).end_tensors(config), weight_dtype(dtype))
    embedding = weights["embedding.weight"]
    head = RowLinear(weights.get("head.weight", embedding))
    if config.tied_head:
        embedding = head.weight
    norm = final_norm(config.block, weights)
    first = final_norm(config.block, weights, "embedding_norm") if config.embedding_norm else None
    return Ends(config, embedding, norm, head, first)


def block_digests(blocks: list[Block]) -> tuple[str, ...]:
    """16 hexadecimal digits for each block over its weights as they are used."""
    return tuple(_block_digest(block) for block in blocks)


def _block_digest(block: Block) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for linear in block.linears():
        digest.update(linear.weight.cpu().contiguous().view(torch.uint8).numpy().data)
        if linear.bias is not None:
            digest.update(linear.bias.cpu().numpy().tobytes())
    for vector in block.vectors():
        digest.update(vector.cpu().numpy().tobytes())
    return digest.hexdigest()
