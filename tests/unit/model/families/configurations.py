"""What the tests of families share: small configurations, tensors as numbers, and a GGUF file that lies in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from shoal.errors import CheckpointError
from shoal.model.families import TensorSource, family, model_config
from shoal.model.nn.block import ModelConfig

SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 50,
}


def model(model_type: str, **fields: Any) -> ModelConfig:
    """The model of SMALL with other fields."""
    return model_config({"model_type": model_type, **SMALL, **fields})


def tensors(config: ModelConfig, index: int = 0) -> dict[str, TensorSource]:
    """Where a block's weights are."""
    return family(config.model_type).block_tensors(config, index)


def counted(*shape: int) -> Tensor:
    """0, 1, 2, … in fp32."""
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float32).view(shape)


def taken(source: TensorSource, stored: Tensor) -> Tensor:
    """The role's weight of a stored tensor."""
    assert stored.shape == source.shape
    return stored if source.take is None else source.take(stored)


class GgufMemory:
    """A GGUF file of an architecture: metadata under its prefix, and tensors."""

    name = "memory.gguf"

    def __init__(self, architecture: str, tensors: Mapping[str, Tensor] | None = None, **fields: Any) -> None:
        self.metadata: dict[str, Any] = {"general.architecture": architecture}
        self.metadata |= {f"{architecture}.{key.replace('__', '.')}": value for key, value in fields.items()}
        self._tensors = {"token_embd.weight": torch.zeros(50, 64), **(tensors or {})}

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def shape(self, name: str) -> tuple[int, ...]:
        """GgufContents."""
        if name not in self._tensors:
            raise CheckpointError(f"{self.name} has no tensor {name}")
        return tuple(self._tensors[name].shape)

    def read(self, name: str, index: int | None = None) -> Tensor:
        """GgufContents."""
        return self._tensors[name] if index is None else self._tensors[name][index]
