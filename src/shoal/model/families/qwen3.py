"""Qwen 3: Llama with norms of q and k for each head."""

from __future__ import annotations

from shoal.model.families import qwen2, standard
from shoal.model.families.family import Family
from shoal.model.families.fields import Config, flag
from shoal.model.families.gguf_mapping import GgufMapping
from shoal.model.families.qwen2 import windowed
from shoal.model.nn.block import ModelConfig, StoredTensors


def config(hf: Config) -> ModelConfig:
    """From config.json."""
    bias = flag(hf, "attention_bias")
    stored = StoredTensors(attention_bias=bias, output_bias=bias)
    return windowed(hf, standard.block_config(hf, qk_norm="head"), stored)


GGUF = GgufMapping("qwen3")
DEFAULTS = {**qwen2.DEFAULTS, "head_dim": 128}
FAMILY = Family("qwen3", "Qwen 3", config, standard.dense_tensors, standard.end_tensors, gguf=GGUF, defaults=DEFAULTS)
