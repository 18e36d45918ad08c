"""What quantizing has cost, on text that calibration did not see."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import msgspec
import torch
from msgspec import Meta

from shoal.model.families import model_config
from shoal.model.nn.block import EmbeddingAndHead
from shoal.model.weights.block_loading import load_ends
from shoal.model.weights.checkpoint import Checkpoint
from shoal.quantize.block_forward import BlockForward, load_weights
from shoal.quantize.calibration import Tokens
from shoal.quantize.measuring import HEAD_ROWS, Progress
from shoal.quantize.source_model import batches, divergences, embedded, log_probabilities
from shoal.quantize.state_files import StateFile, StateSeries


class Evaluation(msgspec.Struct, frozen=True):
    """Over `tokens` predictions: the divergence from the original in nats, with the standard error over rows of text; both
    models' perplexities; and how often they hold the same next token for the likeliest."""

    tokens: int
    divergence: float
    divergence_error: float
    perplexity: float
    original_perplexity: float
    same_top: Annotated[float, Meta(ge=0, le=1)]


def run_through(
    checkpoint: Checkpoint, tokens: Tokens, folder: Path, stem: str, progress: Progress, what: str
) -> StateFile:
    """The states of rows of tokens behind a model's last block, in a folder; goes on where it was ended."""
    config = model_config(checkpoint.config)
    blocks, forward = config.num_blocks, BlockForward(tokens.shape[1])
    series = StateSeries(folder, stem, (tokens.shape[1], config.block.hidden_size))
    first = series.begin(lambda: embedded(load_ends(checkpoint, config), tokens))
    for block in range(first, blocks):
        progress(what, block, blocks)
        made = load_weights(checkpoint, config, block).block()
        series[block + 1].write(forward(made, states) for states in batches(series[block]))
        series.forget_before(block + 1)
    return series[blocks]


def compare(
    original: Checkpoint, quantized: Checkpoint, states: tuple[StateFile, StateFile], tokens: Tokens
) -> Evaluation:
    """The two models by their states behind the last block, the original's first."""
    ends = [load_ends(checkpoint, model_config(checkpoint.config)) for checkpoint in (original, quantized)]
    sums = torch.stack([_compare_row(ends, states, tokens, row) for row in range(len(tokens))])
    predicted = tokens.shape[1] - 1
    total = predicted * len(tokens)
    divergence, original_loss, loss, same = (sums.sum(0) / total).tolist()
    spread = float((sums[:, 0] / predicted).std()) / math.sqrt(len(tokens)) if len(tokens) > 1 else 0.0
    return Evaluation(total, divergence, spread, math.exp(loss), math.exp(original_loss), same)


def _compare_row(
    ends: list[EmbeddingAndHead], states: tuple[StateFile, StateFile], tokens: Tokens, row: int
) -> torch.Tensor:
    """Sums over a row's predictions: divergence, the original's loss, the other's, and where both say the same."""
    targets = torch.from_numpy(tokens[row, 1:].astype("int64"))
    original, quantized = (torch.split(one.read(row, 1)[0, :-1], HEAD_ROWS) for one in states)
    sums = torch.zeros(4, dtype=torch.float64)
    for first, other, target in zip(original, quantized, torch.split(targets, HEAD_ROWS), strict=True):
        ours, theirs = log_probabilities(ends[0], first), log_probabilities(ends[1], other)
        sums += torch.stack(
            [
                divergences(ours, theirs).sum(dtype=torch.float64),
                -ours.gather(1, target[:, None]).sum(dtype=torch.float64),
                -theirs.gather(1, target[:, None]).sum(dtype=torch.float64),
                (ours.argmax(1) == theirs.argmax(1)).sum(dtype=torch.float64),
            ]
        )
    return sums
