"""Hollow cases: checkpoints on which a family would pass its certification though what it computes is wrong.

A tiny model may repeat one token whatever its numbers are, or copy its input, or be blind for a number of its configuration.
Such a case is refused: it has to say enough, and to move when any number that the arithmetic reads is another one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import torch
from torch import Tensor

from shoal.model.nn.block import BlockConfig, ModelConfig
from shoal.model.nn.block_weights import BlockWeights
from shoal.model.nn.mla import LatentConfig
from shoal.model.nn.moe import MoeConfig
from shoal.model.nn.rope import RopeConfig

DISTINCT = 32
"""Tokens that a reply of 128, or the most likely next tokens of a prompt of 150, have at least."""

MOST_OFTEN = 0.25
"""The share of a reply that one token may have."""

COPIED = 0.2
"""The share of positions whose most likely next token may be the token itself."""

VISIBLE = 2e-4
"""By how much logits have to move: twice what certification allows, so that no number hides in the rest of the rounding."""


class HollowCase(AssertionError):
    """A case says too little to certify anything."""


def check_tokens(given: Sequence[int], tokens: Sequence[int], what: str) -> None:
    """Raise HollowCase for next tokens that hardly differ, or are those `given` before each."""
    (token, often), distinct = Counter(tokens).most_common(1)[0], len(set(tokens))
    copied = sum(one == before for one, before in zip(tokens, given, strict=True))
    if distinct < DISTINCT or often > MOST_OFTEN * len(tokens):
        raise HollowCase(f"{what}: {len(tokens)} tokens, of which {distinct} differ and {often} are {token}")
    if copied > COPIED * len(tokens):
        raise HollowCase(f"{what}: {copied} of {len(tokens)} tokens are those before them")


class Change(NamedTuple):
    """A model with one number changed."""

    what: str
    config: ModelConfig


Others = Callable[[Any], tuple[Any, ...]]
"""Other values for one of a configuration's: those that a mistake might put in its place."""


def _scaled(factor: float) -> Others:
    return lambda value: (value * factor,) if value else ()


def _off(value: bool) -> tuple[bool, ...]:
    return (False,) if value else ()


def _flipped(value: bool) -> tuple[bool, ...]:
    return (not value,)


def _one_less(value: int) -> tuple[int, ...]:
    return (value - 1,)


NEAR = {"silu": "gelu", "gelu": "gelu_pytorch_tanh", "gelu_pytorch_tanh": "gelu", "quick_gelu": "gelu"}

MODEL: Mapping[str, Others] = {
    "embedding_scale": lambda scale: (scale * 1.02,) if scale != 1.0 else (),
    "embedding_norm": _off,
    "final_softcap": _scaled(1.05),
}
BLOCK: Mapping[str, Others] = {
    "norm_eps": _scaled(2.0),
    "activation": lambda name: (NEAR[name],),
    "norm": lambda name: ("rms" if name == "layer" else "layer",),
    "pre_norms": _off,
    "post_norms": _off,
    "parallel_residual": _flipped,
    "qk_norm": lambda kind: ("",) if kind else (),
    "window": lambda keys: (keys + 1, keys - 1, 0) if keys else (),
    "attn_softcap": _scaled(1.05),
    "sinks": _off,
    "alibi": _off,
    "mlp_limit": _scaled(1.05),
}
ROPE: Mapping[str, Others] = {
    "theta": _scaled(1.1),
    "kind": lambda kind: ("default",) if kind != "default" else (),
    "factor": _scaled(1.05),
    "low_freq_factor": _scaled(1.2),
    "high_freq_factor": _scaled(1.2),
    "original_max_positions": lambda most: (most * 5 // 4,),
    "factors": lambda factors: (tuple(1.05 * one for one in factors),),
    "long_factors": lambda factors: (tuple(1.05 * one for one in factors),),
    "beta_fast": _scaled(0.5),
    "beta_slow": _scaled(2.0),
    "truncate": _flipped,
    "attention_factor": _scaled(1.01),
}
MOE: Mapping[str, Others] = {
    "experts_per_token": _one_less,
    "scores": lambda kind: ("sigmoid" if kind == "softmax" else "softmax",),
    "normalized": _flipped,
    "scale": _scaled(1.02),
    "correction": _off,
    "num_groups": lambda count: (1,) if count > 1 else (),
    "groups_per_token": _one_less,
    "shared_size": lambda size: (0,) if size else (),
}
LATENT: Mapping[str, Others] = {"norm_eps": _scaled(30.0)}

READ_BY_KIND: Mapping[str, tuple[str, ...]] = {
    "default": ("theta",),
    "linear": ("theta", "kind", "factor"),
    "dynamic": ("theta", "kind", "factor", "original_max_positions"),
    "llama3": ("theta", "kind", "factor", "low_freq_factor", "high_freq_factor", "original_max_positions"),
    "yarn": (
        *("theta", "kind", "factor", "original_max_positions", "beta_fast", "beta_slow", "truncate"),
        "attention_factor",
    ),
    "longrope": ("theta", "attention_factor"),
}
"""What a rotary embedding reads; the rest of its configuration is for other kinds."""

APART: Mapping[type, frozenset[str]] = {
    BlockConfig: frozenset({"query_scale", "rotary_dim", "rope", "moe", "latent"}),
    ModelConfig: frozenset({"block", "block_kinds", "layer_types"}),
}
"""Fields that `changes` looks after by hand."""

UNCHANGED: Mapping[type, frozenset[str]] = {
    BlockConfig: frozenset(
        {
            "hidden_size",
            "num_heads",
            "num_kv_heads",
            "head_dim",
            "intermediate_size",
            "gated_mlp",
        }  # by the weights' sizes
    ),
    ModelConfig: frozenset(
        {"model_type", "num_blocks", "vocab_size", "max_positions", "eos_token_ids", "tied_head", "stored"}
    ),
    MoeConfig: frozenset({"num_experts", "intermediate_size"}),
    LatentConfig: frozenset({"query_rank", "rank", "plain_dim", "rotary_dim", "value_dim"}),
}
"""Fields that the weights' sizes and names fix, or that no arithmetic reads."""

TABLES: Mapping[type, Mapping[str, Others]] = {
    ModelConfig: MODEL,
    BlockConfig: BLOCK,
    RopeConfig: ROPE,
    MoeConfig: MOE,
    LatentConfig: LATENT,
}


def changes(config: ModelConfig, granted: int) -> Iterator[Change]:
    """The model with each number that its arithmetic reads changed, one at a time, for sessions of `granted` tokens."""
    for name, other in _changed(config, MODEL):
        yield Change(name, other)
    types = config.layer_types[1:] + config.layer_types[:1]
    if types != config.layer_types and len({kind.moe is None for kind in config.block_kinds}) == 1:
        yield Change("the order of the blocks' kinds", msgspec.structs.replace(config, layer_types=types))
    for kind in config.distinct_blocks:
        for name, block in _block_changes(kind, granted):
            yield Change(name, _with_block(config, kind, block))


def _changed(struct: Any, table: Mapping[str, Others], names: Sequence[str] | None = None) -> Iterator[tuple[str, Any]]:
    for name in table if names is None else names:
        value = getattr(struct, name)
        for other in table[name](value):
            yield f"{name} {other} instead of {value}", msgspec.structs.replace(struct, **{name: other})


def _with_block(config: ModelConfig, kind: BlockConfig, other: BlockConfig) -> ModelConfig:
    kinds = tuple(other if one == kind else one for one in config.block_kinds)
    return msgspec.structs.replace(
        config, block=other if config.block == kind else config.block, block_kinds=kinds or config.block_kinds
    )


def _block_changes(block: BlockConfig, granted: int) -> Iterator[tuple[str, BlockConfig]]:
    yield from _changed(block, BLOCK)
    scale = block.head_dim**-0.5 if block.query_scale is None else block.query_scale
    yield "query_scale", msgspec.structs.replace(block, query_scale=1.02 * scale)
    if not block.rope.factors:  # which are for so many dimensions
        fewer = block.rotated_dim - 2 if block.rotated_dim else 2
        yield f"rotary_dim {fewer} instead of {block.rotated_dim}", msgspec.structs.replace(block, rotary_dim=fewer)
    if block.rotated_dim:
        for name, rope in _changed(block.rope, ROPE, _read(block.rope, granted)):
            yield f"rope: {name}", msgspec.structs.replace(block, rope=rope)
    if block.moe is not None:
        for name, moe in _moe_changes(block.moe):
            yield f"experts: {name}", msgspec.structs.replace(block, moe=moe)
    if block.latent is not None:
        for name, latent in _changed(block.latent, LATENT):
            yield f"latent: {name}", msgspec.structs.replace(block, latent=latent)


def _read(rope: RopeConfig, granted: int) -> tuple[str, ...]:
    names = READ_BY_KIND[rope.kind]
    if rope.kind == "longrope":
        return (*names, "long_factors" if granted > rope.original_max_positions else "factors")
    return (*names, "factors") if rope.factors else names


def _moe_changes(moe: MoeConfig) -> Iterator[tuple[str, MoeConfig]]:
    for name, other in _changed(moe, MOE):
        alone = other.num_groups == 1
        if other.groups_per_token < 1 or other.experts_per_token < 1:
            continue
        if moe.scores == "softmax_of_chosen" and name.startswith(("normalized", "scale")):
            continue  # which it does not read
        yield name, msgspec.structs.replace(other, groups_per_token=1) if alone else other


def moved(before: Tensor, after: Tensor) -> float:
    """The largest difference of any two logits; what is not a number has moved."""
    largest = float((after - before).abs().max())
    return largest if largest == largest else float("inf")


def rolled(block: BlockConfig, weights: BlockWeights) -> Iterator[tuple[str, BlockWeights]]:
    """A block's weights with each one turned by a row, so that none of it stands where it should; of experts, the first's.

    Without a rotation a bias of k moves all scores of a query alike: nothing sees it.
    """
    for group in ("matrices", "vectors"):
        for role, weight in getattr(weights, group).items():
            if _EXPERT.match(role) or (role == "k.bias" and not block.rotated_dim):
                continue
            other = {**getattr(weights, group), role: torch.roll(weight, 1, 0)}
            yield role, weights._replace(**{group: other})


_EXPERT = re.compile(r"experts\.[1-9]")
