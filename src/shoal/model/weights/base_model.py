"""A quantized checkpoint as one of its base's servers: whether both describe the same computation, and where they differ."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import msgspec
import torch

from shoal.model.nn.block import BlockConfig, ModelConfig
from shoal.model.nn.rope import RopeConfig, frequencies

TOLERANCE = 1e-5
"""Relative: a GGUF file has fp32 where config.json has as many digits as were written."""

_BESIDE = ("model_type", "eos_token_ids", "tied_head", "block", "block_kinds", "layer_types")
"""Fields that do not matter for blocks, and those that are compared block by block. A GGUF file calls a Mistral a Llama."""


def differences(made: ModelConfig, base: ModelConfig) -> list[str]:
    """The fields in which a model differs from the one that it was made from, each with both values.

    What only the client computes may differ: a quantized file can have a head of its own. Numbers are equal up to rounding, and
    rotary embeddings whose frequencies are, however a file writes them.
    """
    found = list(_unlike("", made, base, _BESIDE))
    if made.num_blocks == base.num_blocks:
        pairs = {(made.block_config(index), base.block_config(index)): index for index in range(base.num_blocks)}
        for (mine, theirs), index in pairs.items():
            where = f"block {index}: " if len(pairs) > 1 else ""
            found += [f"{where}{text}" for text in _unlike_blocks(mine, theirs, max(made.max_positions, 1))]
    return found


def _unlike_blocks(mine: BlockConfig, theirs: BlockConfig, tokens: int) -> Iterator[str]:
    yield from _unlike("", mine, theirs, ("rope", "query_scale"))
    if not _close(_query_scale(mine), _query_scale(theirs)):
        yield f"query_scale ({_query_scale(mine):.6g}, not {_query_scale(theirs):.6g})"
    if mine.rotated_dim == theirs.rotated_dim and not _same_rope(mine.rope, theirs.rope, mine.rotated_dim, tokens):
        yield f"rope ({_short(mine.rope)}, not {_short(theirs.rope)})"


def _query_scale(block: BlockConfig) -> float:
    return block.query_scale if block.query_scale is not None else 1 / math.sqrt(max(block.head_dim, 1))


def _unlike(path: str, mine: msgspec.Struct, theirs: msgspec.Struct, beside: tuple[str, ...] = ()) -> Iterator[str]:
    for name in mine.__struct_fields__:
        one, other = getattr(mine, name), getattr(theirs, name)
        if name in beside or _close(one, other):
            continue
        if isinstance(one, msgspec.Struct) and isinstance(other, msgspec.Struct):
            yield from _unlike(f"{path}{name}.", one, other)
        else:
            yield f"{path}{name} ({_short(one)}, not {_short(other)})"


def _close(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float | int):
        return math.isclose(one, other, rel_tol=TOLERANCE)
    return bool(one == other)


def _same_rope(mine: RopeConfig, theirs: RopeConfig, dim: int, tokens: int) -> bool:
    """Whether all angles are equal up to rounding, of short sessions and of the longest."""
    if dim == 0:
        return True
    if not _close(mine.attention_factor, theirs.attention_factor):
        return False
    return all(
        torch.allclose(frequencies(mine, dim, granted), frequencies(theirs, dim, granted), rtol=TOLERANCE, atol=0.0)
        for granted in (1, tokens)
    )


def _short(value: object) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
