"""Which layers of a block are quantized, family by family."""

from __future__ import annotations

import math
from typing import Any

import pytest

from shoal.errors import UnsupportedModel
from shoal.model.families import FAMILIES, family, model_config
from shoal.model.kernels.linears import torch_linear
from shoal.model.nn.block import Block
from shoal.quantize.block_layers import block_layers, input_roles, model_layers
from tests.support.family_cases import CASES, TINY, Case
from tests.support.tiny_models import random_parameters

FUSED = {"phi3", "glm4", "gpt_oss", "deepseek_v2", "deepseek_v3", "bloom", "falcon"}
"""Families whose files have several layers in one tensor, or whose attention is latent."""

FIRST = {case.model_type: case for case in reversed(CASES)}


def described(case: Case) -> Any:
    """A case's configuration as its family reads it."""
    fields = {key: value for key, value in {**TINY, **case.fields}.items() if value is not None}
    return model_config({"model_type": case.model_type, **fields})


@pytest.mark.parametrize("model_type", sorted(set(FAMILIES) - FUSED))
def test_every_matrix_of_a_block_but_the_router_is_a_layer(model_type: str) -> None:
    """Once, under its name in the file, with its shape."""
    config = described(FIRST[model_type])
    for index, layers in enumerate(model_layers(config)):
        tensors = family(model_type).block_tensors(config, index)
        matrices = {
            one.name: one.shape for role, one in tensors.items() if len(one.shape) == 2 and role[:6] != "router"
        }
        assert {f"{layer.key}.weight": (layer.shape.outputs, layer.shape.inputs) for layer in layers} == matrices
        assert sum(layer.shape.weights for layer in layers) == sum(map(math.prod, matrices.values()))


@pytest.mark.parametrize("model_type", sorted(FUSED & set(FAMILIES)))
def test_families_that_the_format_cannot_hold_yet_are_named(model_type: str) -> None:
    """Before anything is read."""
    with pytest.raises(UnsupportedModel, match="cannot be quantized yet"):
        model_layers(described(FIRST[model_type]))


@pytest.mark.parametrize("model_type", ["llama", "mixtral", "gemma2"])
def test_roles_come_in_the_order_of_a_blocks_matrices(model_type: str) -> None:
    """By the inputs that each matrix of a block has."""
    config = described(FIRST[model_type]).block
    weights = random_parameters(config, 1, model_type=model_type)[0]
    block = Block(config, weights, torch_linear)
    for roles, linear in zip(input_roles(config), block.linears(), strict=True):
        outputs = sum(weights.matrix(role).shape[0] for role in roles)
        assert linear.out_features >= outputs, roles


def test_experts_of_a_block_are_one_kind() -> None:
    """Whatever their number."""
    layers = block_layers(described(FIRST["mixtral"]), 0)
    kinds = {layer.kind for layer in layers}
    assert kinds == {"q", "k", "v", "o", "experts.gate", "experts.up", "experts.down"}
