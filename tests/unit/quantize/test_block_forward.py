"""Blocks over whole rows: the numbers that transformers has, and statistics of every layer's inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from shoal.quantize.block_forward import BlockForward
from shoal.quantize.source_model import SourceModel
from tests.support.family_cases import CASES, save_checkpoint

LENGTH = 80
SOME = {("llama", "biases"), ("qwen3", ""), ("gemma2", ""), ("mistral", "window"), ("mixtral", ""), ("olmo2", "")}
"""Biases, norms of heads, soft caps and windows, experts, norms behind."""


@pytest.fixture(params=sorted(SOME), ids=" ".join)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> SourceModel:
    """A random model of a family."""
    case = next(case for case in CASES if (case.model_type, case.name) == request.param)
    return SourceModel.open(str(save_checkpoint(case, tmp_path)))


def hidden_states(model: SourceModel, tokens: torch.Tensor) -> Any:
    """transformers' states before each block of it."""
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(model.checkpoint.source, dtype=torch.float32).eval()
    with torch.no_grad():
        return reference(tokens, output_hidden_states=True).hidden_states


def test_states_are_those_of_transformers(model: SourceModel) -> None:
    """Behind every block but the last, for two rows at once."""
    tokens = torch.randint(0, model.config.vocab_size, (2, LENGTH), generator=torch.Generator().manual_seed(3))
    expected = hidden_states(model, tokens)
    states, forward = model.ends().embed(tokens.flatten().tolist()).view(2, LENGTH, -1), BlockForward(LENGTH)
    for block in range(model.config.num_blocks - 1):
        states = forward(model.weights(block).block(), states)
        assert float((states - expected[block + 1]).abs().max()) < 1e-4


def test_each_layer_sees_its_inputs(model: SourceModel) -> None:
    """The observed block computes the same; all rows but an expert's reach every layer."""
    states, forward = torch.randn(2, LENGTH, model.config.block.hidden_size), BlockForward(LENGTH)
    weights = model.weights(0)
    block, statistics = weights.observed()
    assert torch.equal(forward(block, states), forward(weights.block(), states))
    experts = 0
    for layer in model.layers[0]:
        seen = statistics[layer.role]
        assert seen.products.shape == (layer.shape.inputs, layer.shape.inputs)
        assert layer.kind != layer.role or seen.rows == 2 * LENGTH
        experts += seen.rows if layer.kind == "experts.down" else 0
    moe = model.config.block.moe
    assert experts == (0 if moe is None else 2 * LENGTH * moe.experts_per_token)


def test_other_matrices_change_the_block(model: SourceModel) -> None:
    """Those that are replaced, and no others."""
    states, forward = torch.randn(1, LENGTH, model.config.block.hidden_size), BlockForward(LENGTH)
    weights = model.weights(0)
    same = weights.with_matrices({"o": weights.matrix("o").clone()})
    assert torch.equal(forward(same, states), forward(weights.block(), states))
    other = weights.with_matrices({"o": 0 * weights.matrix("o")})
    assert not torch.equal(forward(other, states), forward(weights.block(), states))
