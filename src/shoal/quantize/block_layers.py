"""The linear layers of a model's blocks that can be quantized: their names, shapes, and which of them share their inputs."""

from __future__ import annotations

import re
from typing import NamedTuple

from shoal.errors import UnsupportedModel
from shoal.model.families import TensorSource, family
from shoal.model.nn.block import BlockConfig, ModelConfig
from shoal.quantize.row_groups import MatrixShape

_EXPERT = re.compile(r"experts\.\d+\.")
_WEIGHT = ".weight"


class QuantizedLayer(NamedTuple):
    """A layer by its name in the file, X of X.weight, and the role that its family knows it by."""

    key: str
    role: str
    shape: MatrixShape

    @property
    def kind(self) -> str:
        """The role without an expert's number: experts of a block are probed together."""
        return _EXPERT.sub("experts.", self.role)


def input_roles(config: BlockConfig) -> list[tuple[str, ...]]:
    """The roles of a block's layers in the order in which `Block.linears` gives them; those of one entry share their inputs.

    Raises UnsupportedModel for DeepSeek's latent attention.
    """
    if config.latent is not None:
        raise UnsupportedModel("latent attention cannot be quantized yet")
    return [("q", "k", "v"), ("o",), *_mlp_roles(config)]


def _mlp_roles(config: BlockConfig) -> list[tuple[str, ...]]:
    if config.moe is None:
        return _gated("") if config.gated_mlp else [("up",), ("down",)]
    experts = [roles for index in range(config.moe.num_experts) for roles in _gated(f"experts.{index}.")]
    return [("router",), *experts, *(_gated("shared.") if config.moe.shared_size else [])]


def _gated(prefix: str) -> list[tuple[str, ...]]:
    return [(f"{prefix}gate", f"{prefix}up"), (f"{prefix}down",)]


def block_layers(config: ModelConfig, index: int) -> list[QuantizedLayer]:
    """The layers of a block, routers left out; raises UnsupportedModel for parts of a fused tensor, which the format lacks."""
    tensors = family(config.model_type).block_tensors(config, index)
    roles = [role for group in input_roles(config.block_config(index)) for role in group if role != "router"]
    return [_layer(role, tensors[role + _WEIGHT], f"{role}.bias" in tensors, config.model_type) for role in roles]


def _layer(role: str, source: TensorSource, bias: bool, model_type: str) -> QuantizedLayer:
    if source.take is not None or not source.name.endswith(_WEIGHT):
        raise UnsupportedModel(f"{model_type} models cannot be quantized yet: {source.name} holds several layers")
    outputs, inputs = source.shape
    return QuantizedLayer(source.name.removesuffix(_WEIGHT), role, MatrixShape(inputs, outputs, bias))


def model_layers(config: ModelConfig) -> list[list[QuantizedLayer]]:
    """The layers of every block."""
    return [block_layers(config, index) for index in range(config.num_blocks)]
