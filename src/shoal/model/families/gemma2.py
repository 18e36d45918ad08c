"""Gemma 2: norms on both sides, capped scores and logits, a window in every other block."""

from __future__ import annotations

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
from shoal.model.families.layout import TensorMap
from shoal.model.nn.block import ModelConfig

TYPES = ("sliding_attention", "full_attention")
NORMS = {
    "attention_norm": "input_layernorm",
    "attention_post_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
}


def config(hf: Config) -> ModelConfig:
    """From config.json."""
    refuse(hf, "use_bidirectional_attention", False)
    bias = flag(hf, "attention_bias")
    full = standard.block_config(
        {"head_dim": 256, **hf},
        attention_bias=bias,
        output_bias=bias,
        activation=activation(hf, "hidden_activation", "gelu_pytorch_tanh"),
        norm_offset=1.0,
        post_norms=True,
        query_scale=number(hf, "query_pre_attn_scalar", 256) ** -0.5,
        attn_softcap=optional_number(hf, "attn_logit_softcapping"),
    )
    local = msgspec.structs.replace(full, window=integer(hf, "sliding_window", 4096))
    num_blocks = integer(hf, "num_hidden_layers", most=MAX_BLOCKS)
    types = layer_types(hf, num_blocks, TYPES, [TYPES[index % 2] for index in range(num_blocks)])
    return standard.model_config(
        {"tie_word_embeddings": True, **hf},
        full,
        embedding_scale=full.hidden_size**0.5,
        final_softcap=optional_number(hf, "final_logit_softcapping"),
        **standard.pattern(dict(zip(TYPES, (local, full), strict=True)), types),
    )


def block_tensors(config: ModelConfig, index: int) -> TensorMap:
    """Llama's names with four norms."""
    return standard.dense_tensors(config, index, NORMS)


FAMILY = Family("gemma2", "Gemma 2", config, block_tensors, standard.end_tensors, ("fp32", "bf16"))
