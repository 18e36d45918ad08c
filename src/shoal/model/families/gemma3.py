"""Gemma 3 (text): norms on both sides, norms of q and k, windows with a rope of their own in five of six blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from shoal.errors import CheckpointError
from shoal.model.families import gemma2, standard
from shoal.model.families.family import Family
from shoal.model.families.fields import (
    MAX_BLOCKS,
    Config,
    activation,
    flag,
    integer,
    layer_types,
    number,
    optional_number,
    refuse,
    rope,
)
from shoal.model.families.gguf_mapping import NEEDED, GgufFields, GgufMapping, shifted_norms
from shoal.model.nn.block import ModelConfig, StoredTensors

TYPES = ("sliding_attention", "full_attention")


def config(hf: Config) -> ModelConfig:
    """From config.json."""
    refuse(hf, "use_bidirectional_attention", False)
    bias, head_dim = flag(hf, "attention_bias"), integer(hf, "head_dim")
    ropes = _ropes(hf)
    full = standard.block_config(
        hf,
        activation=activation(hf, "hidden_activation"),
        post_norms=True,
        qk_norm="head",
        query_scale=number(hf, "query_pre_attn_scalar") ** -0.5,
        attn_softcap=optional_number(hf, "attn_logit_softcapping"),
        rope=rope(hf, head_dim, ropes["full_attention"]),
    )
    local = msgspec.structs.replace(
        full, window=integer(hf, "sliding_window"), rope=rope(hf, head_dim, ropes["sliding_attention"])
    )
    num_blocks = integer(hf, "num_hidden_layers", most=MAX_BLOCKS)
    every = integer(hf, "sliding_window_pattern")
    types = layer_types(hf, num_blocks, TYPES, [TYPES[(index + 1) % every == 0] for index in range(num_blocks)])
    return standard.model_config(
        hf,
        full,
        stored=StoredTensors(attention_bias=bias, output_bias=bias),
        embedding_scale=full.hidden_size**0.5,
        final_softcap=optional_number(hf, "final_logit_softcapping"),
        **standard.differing(dict(zip(TYPES, (local, full), strict=True)), types),
    )


def _ropes(hf: Config) -> Mapping[str, Any]:
    """Both rotary embeddings by the blocks' types, from newer and older files."""
    given, scaling = hf.get("rope_parameters") or dict.fromkeys(TYPES), hf.get("rope_scaling") or {}
    if not isinstance(given, Mapping) or not set(given) & set(TYPES):
        raise CheckpointError(
            f"the configuration's rope_parameters are {given!r}, not one for each of {', '.join(TYPES)}"
        )
    local, full = (given.get(one) or {} for one in TYPES)
    if not all(isinstance(one, Mapping) for one in (local, full, scaling)):
        raise CheckpointError("the configuration's rope_parameters and rope_scaling are not mappings")
    return {
        "full_attention": {"rope_theta": number(hf, "rope_theta"), **full, **scaling},
        "sliding_attention": {"rope_theta": number(hf, "rope_local_base_freq"), **local},
    }


def gguf_fields(fields: GgufFields) -> dict[str, Any]:
    """From GGUF's metadata: Gemma 2's, with a rope for each type of block."""
    config = gemma2.gguf_fields(fields, 62)
    local = {"rope_type": "default", "rope_theta": fields.get("rope.freq_base_swa", 10_000.0)}
    ropes = {"full_attention": config["rope_parameters"], "sliding_attention": local}
    return {**config, "rope_parameters": ropes}


GGUF = GgufMapping("gemma3", gguf_fields, shifted_norms, needed=(*NEEDED, "attention.sliding_window", "rope.freq_base"))
DEFAULTS = {
    **gemma2.DEFAULTS,
    "vocab_size": 262_208,
    "max_position_embeddings": 131_072,
    "rope_theta": 1e6,
    "rope_local_base_freq": 1e4,
    "sliding_window_pattern": 6,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
}
FAMILY = Family(
    "gemma3_text", "Gemma 3 (text)", config, gemma2.block_tensors, gemma2.end_tensors, ("fp32", "bf16"), GGUF, DEFAULTS
)
