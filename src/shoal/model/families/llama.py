"""Llama: 1, 2, 3, 3.1, 3.2, 3.3 and everything that says `model_type: llama` (SmolLM, TinyLlama, Yi, …)."""

from __future__ import annotations

from shoal.model.families import standard
from shoal.model.families.family import Family
from shoal.model.families.fields import Config, flag
from shoal.model.nn.block import ModelConfig


def config(hf: Config) -> ModelConfig:
    """From config.json."""
    bias = flag(hf, "attention_bias")
    block = standard.block_config(hf, attention_bias=bias, output_bias=bias, mlp_bias=flag(hf, "mlp_bias"))
    return standard.model_config(hf, block)


FAMILY = Family("llama", "Llama 1 to 3.3", config, standard.dense_tensors, standard.end_tensors)
