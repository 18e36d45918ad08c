"""Model families: what a checkpoint's configuration and tensor names mean. A family is data; see `llama`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from shoal.errors import UnsupportedModel
from shoal.nn.block import ModelConfig
from shoal.nn.families import llama

Shapes = dict[str, tuple[str, tuple[int, ...]]]
"""By role: the tensor's name in the checkpoint and its shape."""


class Family(msgspec.Struct, frozen=True):
    """One `model_type`."""

    config: Callable[[Mapping[str, Any]], ModelConfig]
    block_tensors: Callable[[ModelConfig, int], Shapes]
    end_tensors: Callable[[ModelConfig], Shapes]


FAMILIES: dict[str, Family] = {"llama": Family(llama.config, llama.block_tensors, llama.end_tensors)}


def family(model_type: str) -> Family:
    """The family of a `model_type`; raises UnsupportedModel naming those there are."""
    found = FAMILIES.get(model_type)
    if found is None:
        raise UnsupportedModel(f"models of type {model_type!r} are not supported (these are: {', '.join(FAMILIES)})")
    return found


def model_config(hf_config: Mapping[str, Any]) -> ModelConfig:
    """The shape of a model from its configuration in the layout of HF's config.json.

    Raises UnsupportedModel for a type or option that is not known, CheckpointError for numbers that cannot be.
    """
    return family(str(hf_config.get("model_type"))).config(hf_config)
