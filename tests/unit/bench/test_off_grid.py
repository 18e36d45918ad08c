"""The same function with its channels in another order."""

from __future__ import annotations

from pathlib import Path

import torch

from bench.off_grid import Permutations, write_off_grid
from shoal.model.weights.model_source import open_checkpoint
from shoal.quantize.block_forward import BlockForward
from shoal.quantize.source_model import SourceModel
from tests.support.quantized_models import small_llama


def logits(source: Path) -> torch.Tensor:
    """Of some tokens."""
    model, forward = SourceModel.open(str(source)), BlockForward(40)
    states = model.ends().embed(list(range(40)))[None]
    for block in range(model.config.num_blocks):
        states = forward(model.weights(block).block(), states)
    return model.ends().logits(states[0], 1)


def test_logits_stay_and_weights_move(tmp_path: Path) -> None:
    """The channels of each matrix have another order; norms of ones alone look as they did."""
    source = small_llama(tmp_path / "source")
    checkpoint = open_checkpoint(str(source))
    moved = Permutations(checkpoint.config)
    for name, info in checkpoint.tensors.items():
        tensor = checkpoint.read(name)
        other = moved.apply(name, tensor)
        assert other.shape == info.shape
        assert not torch.equal(other, tensor)
        assert torch.equal(other.flatten().sort().values, tensor.flatten().sort().values)
    out = write_off_grid(tmp_path / "out", source, tokenizer=False)
    assert float((logits(out) - logits(source)).abs().max()) < 1e-4
