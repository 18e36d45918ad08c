"""Model families: what a checkpoint's configuration and tensor names mean. A family is data; see `llama`."""

from __future__ import annotations

from shoal.errors import UnsupportedModel
from shoal.model.families import (
    bloom,
    deepseek,
    falcon,
    gemma2,
    gemma3,
    glm4,
    gpt_oss,
    llama,
    mistral,
    mixtral,
    olmo2,
    phi3,
    qwen2,
    qwen3,
    qwen3_moe,
)
from shoal.model.families.family import Family
from shoal.model.families.fields import Config
from shoal.model.families.gguf_mapping import GgufContents, GgufFields, GgufMapping
from shoal.model.families.layout import TensorMap, TensorSource
from shoal.model.nn.block import ModelConfig

__all__ = [
    "FAMILIES",
    "Family",
    "TensorMap",
    "TensorSource",
    "family",
    "gguf_architectures",
    "gguf_family",
    "model_config",
]

_ALL = (
    llama.FAMILY,
    qwen2.FAMILY,
    qwen3.FAMILY,
    gemma3.FAMILY,
    mistral.FAMILY,
    mixtral.FAMILY,
    qwen3_moe.FAMILY,
    gpt_oss.FAMILY,
    phi3.FAMILY,
    olmo2.FAMILY,
    gemma2.FAMILY,
    glm4.FAMILY,
    deepseek.V2,
    deepseek.V3,
    bloom.FAMILY,
    falcon.FAMILY,
)
FAMILIES: dict[str, Family] = {one.model_type: one for one in _ALL}


def family(model_type: object) -> Family:
    """The family of a `model_type`; raises UnsupportedModel naming those there are."""
    found = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if found is None:
        raise UnsupportedModel(f"models of type {model_type!r} are not supported (these are: {', '.join(FAMILIES)})")
    return found


def model_config(hf_config: Config) -> ModelConfig:
    """The shape of a model from its configuration in the layout of HF's config.json.

    Raises UnsupportedModel for a type or option that is not known, CheckpointError for numbers that cannot be.
    """
    return family(hf_config.get("model_type")).model_config(hf_config)


def gguf_family(file: GgufContents) -> tuple[Family, GgufMapping]:
    """The family of a GGUF file, and its mapping; raises UnsupportedModel naming the architectures that are read."""
    name = file.metadata.get("general.architecture")
    for one in FAMILIES.values():
        if one.gguf is not None and one.gguf.architecture == name and one.gguf.claims(GgufFields(file, name)):
            return one, one.gguf
    raise UnsupportedModel(
        f"{file.name} holds a model of architecture {name!r}; from GGUF these are read: {', '.join(gguf_architectures())}"
    )


def gguf_architectures() -> tuple[str, ...]:
    """The names of GGUF's architectures that are read."""
    return tuple(dict.fromkeys(one.gguf.architecture for one in FAMILIES.values() if one.gguf is not None))
