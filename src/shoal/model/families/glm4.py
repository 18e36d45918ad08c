"""GLM 4 (0414): Llama with norms on both sides, half of each head turning in neighbouring pairs."""

from __future__ import annotations

from shoal.model.families import standard
from shoal.model.families.family import Family
from shoal.model.families.fields import Config, flag
from shoal.model.families.gguf_mapping import GgufMapping, partly_turning
from shoal.model.families.layout import TensorMap, unpaired
from shoal.model.families.phi3 import fused_mlp_tensors
from shoal.model.nn.block import ModelConfig, StoredTensors

NORMS = {
    "attention_norm": "input_layernorm",
    "post_attention_norm": "post_self_attn_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "post_mlp_norm": "post_mlp_layernorm",
}

ENDS = [151329, 151336, 151338]
"""The end tokens where the configuration has none."""


def config(hf: Config) -> ModelConfig:
    """From config.json."""
    hf = {**hf, "eos_token_id": ENDS} if hf.get("eos_token_id") is None else hf
    stored = StoredTensors(attention_bias=flag(hf, "attention_bias"))
    return standard.model_config(hf, standard.block_config(hf, post_norms=True), stored=stored)


def block_tensors(config: ModelConfig, index: int) -> TensorMap:
    """Llama's names with four norms and gate and up fused."""
    shape, prefix = config.block_config(index), f"model.layers.{index}."
    attention = standard.attention_tensors(shape, prefix, config.stored)
    for role in ("q.weight", "q.bias", "k.weight", "k.bias"):
        if role in attention:
            attention[role] = attention[role]._replace(take=unpaired(shape.head_dim, 0, shape.rotated_dim))
    return {
        **standard.norm_tensors(shape, prefix, NORMS),
        **attention,
        **fused_mlp_tensors(shape.hidden_size, shape.intermediate_size, prefix),
    }


GGUF = GgufMapping("glm4", partly_turning)
DEFAULTS = {
    **standard.DEFAULTS,
    "vocab_size": 151552,
    "intermediate_size": 13696,
    "num_hidden_layers": 40,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1.5625e-07,
    "partial_rotary_factor": 0.5,
    "attention_bias": True,
    "eos_token_id": None,
}
FAMILY = Family("glm4", "GLM 4 (0414)", config, block_tensors, standard.end_tensors, gguf=GGUF, defaults=DEFAULTS)
