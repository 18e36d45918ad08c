"""What a server may say of its weights: their bits, from shapes alone, and how far they are from the base."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch

from shoal.model.families import TensorSource, family
from shoal.model.nn.block import ModelConfig
from shoal.model.weights.block_loading import WeightFormat, stored_name
from shoal.model.weights.checkpoint import Checkpoint
from shoal.types import Span


class WeightShape(NamedTuple):
    """A weight of a block: its role, its name in the checkpoint, and its shape in the block."""

    role: str
    stored: TensorSource
    shape: tuple[int, ...]


def span_bits(checkpoint: Checkpoint, config: ModelConfig, span: Span, form: WeightFormat) -> float:
    """Bits of a weight in the matrices of a span held in this form, on average and with scales.

    What the checkpoint has in fewer bits counts with those: floats that were made of codes say no more than the codes.
    Raises CheckpointError for tensors that are missing or have another shape.
    """
    bits, count = 0.0, 0
    for index in span.blocks():
        for one in _weights(config, index):
            if len(one.shape) < 2:
                continue
            numbers, held = math.prod(one.shape), form.bits_of(one.role, one.shape)
            stored = numbers * checkpoint.tensors[stored_name(checkpoint, one.stored)].bits
            bits += min(held, stored) if stored else held
            count += numbers
    return bits / count


def num_weights(config: ModelConfig, span: Span) -> int:
    """Numbers in the matrices of a span."""
    shapes = (one.shape for index in span.blocks() for one in _weights(config, index))
    return sum(math.prod(shape) for shape in shapes if len(shape) >= 2)


CODES_IN_MEMORY = 1.05
"""Codes take at most so many times what they take in a file (docs/concepts/packed-form.md)."""


def block_bytes(config: ModelConfig, form: WeightFormat, checkpoint: Checkpoint) -> int:
    """Memory of the largest block's weights in this form, norms and biases included."""
    first = {config.block_config(index): index for index in range(config.num_blocks - 1, -1, -1)}
    blocks = range(config.num_blocks) if form.keep else first.values()  # files give blocks of one kind several types
    return max(math.ceil(_memory_bits(config, index, form, checkpoint) / 8) for index in blocks)


def _memory_bits(config: ModelConfig, index: int, form: WeightFormat, checkpoint: Checkpoint) -> float:
    bits = 0.0
    for one in _weights(config, index):
        info = checkpoint.tensors.get(one.stored.name)
        if info is not None and info.codes and form.keeps(one.role):
            bits += CODES_IN_MEMORY * info.bits * math.prod(one.shape)
        else:
            bits += form.bits_of(one.role, one.shape)
    return bits


def _weights(config: ModelConfig, index: int) -> Iterator[WeightShape]:
    for role, stored in family(config.model_type).block_tensors(config, index).items():
        taken = None if stored.take is None else stored.take(torch.empty(stored.shape, device="meta"))
        yield WeightShape(role, stored, stored.shape if taken is None else tuple(taken.shape))


_EXACT_IN_FP32 = {"F32", "BF16", "F16"}


def known_kl(checkpoint: Checkpoint, form: WeightFormat) -> float | None:
    """The KL divergence from the base, in nats, of a model held in this form; None where it is not known.

    Floats that are kept as they are have none. What our quantizer made has what it measured, unless it is rounded again. What
    others have rounded nobody has measured.
    """
    if form.bits is None and form.dtype is torch.float32 and checkpoint.note.kl_nats is not None:
        return checkpoint.note.kl_nats
    kinds = {info.dtype for info in checkpoint.tensors.values() if len(info.shape) >= 2}
    own = {"BF16"} if form.dtype is torch.bfloat16 else {"F16"} if form.dtype is torch.float16 else _EXACT_IN_FP32
    return 0.0 if form.bits is None and kinds <= own else None
