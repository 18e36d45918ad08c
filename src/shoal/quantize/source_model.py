"""A model that is measured and quantized: its checkpoint, its layers, and calibration's way through it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from shoal.errors import UnsupportedModel
from shoal.model.families import family, model_config
from shoal.model.kernels.linears import torch_linear
from shoal.model.nn.block import EmbeddingAndHead, ModelConfig
from shoal.model.weights.block_loading import load_ends
from shoal.model.weights.checkpoint import Checkpoint, fingerprint
from shoal.model.weights.model_source import open_checkpoint
from shoal.model.weights.quantized_layers import HEAD
from shoal.quantize.block_forward import WeightsOfBlock, load_weights
from shoal.quantize.block_layers import QuantizedLayer, model_layers
from shoal.quantize.calibration import Tokens
from shoal.quantize.row_groups import MatrixShape
from shoal.quantize.state_files import StateFile

BATCH_TOKENS = 2048
"""Tokens that go through a block at once."""


class SourceModel(NamedTuple):
    """`layers`: those of each block that can be quantized."""

    checkpoint: Checkpoint
    config: ModelConfig
    layers: list[list[QuantizedLayer]]
    fingerprint: str

    @classmethod
    def open(cls, model: str, revision: str | None = None) -> SourceModel:
        """Raises what opening a checkpoint raises, and UnsupportedModel for a family that the format cannot hold yet."""
        checkpoint = open_checkpoint(model, revision)
        config = model_config(checkpoint.config)
        layers = model_layers(config)
        ends = family(config.model_type).end_tensors(config)
        if not config.tied_head and ends["head.weight"].name != f"{HEAD}.weight":
            raise UnsupportedModel(f"{config.model_type} models cannot be quantized yet: their head has another name")
        return cls(checkpoint, config, layers, fingerprint(checkpoint))

    @property
    def quantizable(self) -> list[QuantizedLayer]:
        """The layers whose shapes the format can hold, block after block; the others stay in fp16."""
        return [layer for block in self.layers for layer in block if layer.shape.quantizable]

    @property
    def head(self) -> QuantizedLayer:
        """The head, a matrix of its own in the file also where it is tied to the embedding."""
        return QuantizedLayer(HEAD, "head", MatrixShape(self.config.block.hidden_size, self.config.vocab_size))

    def head_weight(self) -> Tensor:
        """The head's matrix [tokens, hidden]."""
        ends = family(self.config.model_type).end_tensors(self.config)
        return self.checkpoint.read(ends["embedding.weight" if self.config.tied_head else "head.weight"].name)

    def weights(self, block: int) -> WeightsOfBlock:
        """One block's weights in fp32."""
        return load_weights(self.checkpoint, self.config, block)

    def ends(self) -> EmbeddingAndHead:
        """Embedding, final norm and head."""
        return load_ends(self.checkpoint, self.config, make=torch_linear)


def embedded(ends: EmbeddingAndHead, tokens: Tokens) -> Iterator[Tensor]:
    """Rows of tokens [rows, length] as states before the first block, a batch at a time."""
    for first in range(0, len(tokens), batch_rows(tokens.shape[1])):
        some = tokens[first : first + batch_rows(tokens.shape[1])]
        yield ends.embed(some.flatten().tolist()).view(*some.shape, -1)


def batch_rows(length: int) -> int:
    """How many rows of tokens go through a block at once."""
    return max(1, BATCH_TOKENS // length)


def batches(states: StateFile) -> Iterator[Tensor]:
    """States [rows, length, hidden], a batch at a time."""
    return states.batches(batch_rows(states.shape[0]))


def log_probabilities(ends: EmbeddingAndHead, rows: Tensor) -> Tensor:
    """Rows [n, hidden] behind the last block → log-probabilities of the next token [n, vocab] in fp32."""
    return torch.log_softmax(ends.logits(rows, 1), dim=-1)


def divergences(reference: Tensor, other: Tensor) -> Tensor:
    """For each row the divergence of another distribution from the reference, in nats, given both in logarithms."""
    return (reference.exp() * (reference - other)).sum(-1)
