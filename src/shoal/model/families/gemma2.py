"""Gemma 2: norms on both sides, capped scores and logits, a window in every other block."""

from __future__ import annotations

from typing import Any

import msgspec

from shoal.model.families import standard
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
)
from shoal.model.families.gguf_mapping import GgufFields, GgufMapping, gguf_config, shifted_norms
from shoal.model.families.layout import TensorMap, plus_one
from shoal.model.nn.block import ModelConfig, StoredTensors

TYPES = ("sliding_attention", "full_attention")
NORMS = {
    "attention_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "post_mlp_norm": "post_feedforward_layernorm",
}


def config(hf: Config) -> ModelConfig:
    """From config.json."""
    refuse(hf, "use_bidirectional_attention", False)
    bias = flag(hf, "attention_bias")
    full = standard.block_config(
        hf,
        activation=activation(hf, "hidden_activation"),
        post_norms=True,
        query_scale=number(hf, "query_pre_attn_scalar") ** -0.5,
        attn_softcap=optional_number(hf, "attn_logit_softcapping"),
    )
    local = msgspec.structs.replace(full, window=integer(hf, "sliding_window"))
    num_blocks = integer(hf, "num_hidden_layers", most=MAX_BLOCKS)
    types = layer_types(hf, num_blocks, TYPES, [TYPES[index % 2] for index in range(num_blocks)])
    return standard.model_config(
        hf,
        full,
        stored=StoredTensors(attention_bias=bias, output_bias=bias),
        embedding_scale=full.hidden_size**0.5,
        final_softcap=optional_number(hf, "final_logit_softcapping"),
        **standard.differing(dict(zip(TYPES, (local, full), strict=True)), types),
    )


def block_tensors(config: ModelConfig, index: int) -> TensorMap:
    """Llama's names with four norms, all of them stored as w - 1."""
    return _raised(standard.dense_tensors(config, index, NORMS))


def end_tensors(config: ModelConfig) -> TensorMap:
    """Llama's, the norm stored as w - 1."""
    return _raised(standard.end_tensors(config))


def _raised(tensors: TensorMap) -> TensorMap:
    return {role: stored._replace(take=plus_one) if "norm" in role else stored for role, stored in tensors.items()}


def gguf_fields(fields: GgufFields, largest: int) -> dict[str, Any]:
    """From GGUF's metadata. The generation's largest model, of `largest` blocks, scales its queries by the width of a head as
    it would be by division."""
    config = gguf_config(fields)
    if config["num_hidden_layers"] == largest and isinstance(config["num_attention_heads"], int):
        config["query_pre_attn_scalar"] = config["hidden_size"] // max(1, config["num_attention_heads"])
    else:
        config["query_pre_attn_scalar"] = config["head_dim"]
    return config


GGUF = GgufMapping("gemma2", lambda fields: gguf_fields(fields, 46), shifted_norms)
DEFAULTS = {
    **standard.DEFAULTS,
    "vocab_size": 256_000,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "tie_word_embeddings": True,
    "eos_token_id": 1,
}
FAMILY = Family("gemma2", "Gemma 2", config, block_tensors, end_tensors, ("fp32", "bf16"), GGUF, DEFAULTS)
