"""Mistral: Llama with a window in its first version."""

from __future__ import annotations

from shoal.nn.block import ModelConfig
from shoal.nn.families import standard
from shoal.nn.families.family import Family
from shoal.nn.families.fields import Config, integer


def config(hf: Config) -> ModelConfig:
    """From config.json."""
    return standard.model_config(hf, standard.block_config(hf, window=window(hf)))


def window(hf: Config) -> int:
    """`sliding_window`, where nothing means none."""
    return 0 if hf.get("sliding_window") is None else integer(hf, "sliding_window")


FAMILY = Family("mistral", "Mistral", config, standard.dense_tensors, standard.end_tensors)
