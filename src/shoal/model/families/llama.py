"""Llama: 1, 2, 3, 3.1, 3.2, 3.3 and everything that says `model_type: llama` (SmolLM, TinyLlama, Yi, …)."""

from __future__ import annotations

from typing import Any

from shoal.model.families import standard
from shoal.model.families.family import Family
from shoal.model.families.fields import Config, flag
from shoal.model.families.gguf_mapping import GgufFields, GgufMapping, gguf_config, paired_heads
from shoal.model.nn.block import ModelConfig, StoredTensors


def config(hf: Config) -> ModelConfig:
    """From config.json."""
    bias = flag(hf, "attention_bias")
    stored = StoredTensors(attention_bias=bias, output_bias=bias, mlp_bias=flag(hf, "mlp_bias"))
    return standard.model_config(hf, standard.block_config(hf), stored=stored)


def gguf_fields(fields: GgufFields) -> dict[str, Any]:
    """From GGUF's metadata."""
    head_dim = fields.get("attention.key_length", fields.get("rope.dimension_count"))
    return {**gguf_config(fields), "head_dim": head_dim}


GGUF = GgufMapping("llama", gguf_fields, paired_heads, claims=lambda fields: not fields.get("expert_count"))
FAMILY = Family(
    "llama",
    "Llama 1 to 3.3",
    config,
    standard.dense_tensors,
    standard.end_tensors,
    gguf=GGUF,
    defaults=standard.DEFAULTS,
)
