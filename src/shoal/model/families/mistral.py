"""Mistral: Llama with a window in its first version. Its GGUF files call themselves Llama's."""

from __future__ import annotations

from shoal.model.families import standard
from shoal.model.families.family import Family
from shoal.model.families.fields import Config, integer
from shoal.model.nn.block import ModelConfig


def config(hf: Config) -> ModelConfig:
    """From config.json."""
    return standard.model_config(hf, standard.block_config(hf, window=window(hf)))


def window(hf: Config) -> int:
    """`sliding_window`, where nothing means none."""
    return 0 if hf.get("sliding_window") is None else integer(hf, "sliding_window")


DEFAULTS = {
    **standard.DEFAULTS,
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "sliding_window": 4096,
}
FAMILY = Family("mistral", "Mistral", config, standard.dense_tensors, standard.end_tensors, defaults=DEFAULTS)
