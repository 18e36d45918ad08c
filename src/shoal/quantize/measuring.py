"""The first phase: what each layer would lose at each width, and how much the model minds.

Block after block calibration goes through the model as it is. Of each layer every group is rounded at every width. Then
each kind of layer in the block is probed: rounded to a few bits, while all else is exact. Its states go through the rest of
the model beside those of the other probes, so that each block is read once. Behind the head their divergence says how many
nats an error of that layer costs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import torch
from torch import Tensor

from shoal.errors import CheckpointError
from shoal.files import replace_file
from shoal.quantize.block_forward import BlockForward, Statistics, WeightsOfBlock
from shoal.quantize.block_layers import QuantizedLayer
from shoal.quantize.calibration import Tokens
from shoal.quantize.hessian import InverseFactor
from shoal.quantize.layer_factors import factors, ordered
from shoal.quantize.measurement import FORM, MeasuredLayer, Measurement, encode_measurement
from shoal.quantize.rounding import round_matrix
from shoal.quantize.row_groups import WIDTHS, cut, group_sizes, uniform
from shoal.quantize.scale_search import search_scales, weighted_error
from shoal.quantize.source_model import SourceModel, batches, divergences, embedded, log_probabilities
from shoal.quantize.state_files import StateFile, StateSeries

PROBE_BITS = 3
PROBE_GROUP = 64
PROBE_TOKENS = 1024
HEAD_ROWS = 128
"""Rows whose distributions are compared at once."""

Progress = Callable[[str, int, int], None]
"""Hears what is done, how much of it, and of how much."""


class _MeasuredBlock(msgspec.Struct, frozen=True):
    """What is kept of a block until all are measured; `errors` by layer, `probes` by kind in the order of their states."""

    errors: dict[str, dict[int, list[list[float]]]]
    probes: dict[str, float]


class Measuring:
    """Measures a model with rows of tokens in a folder, where it goes on after it was ended at any moment."""

    def __init__(self, model: SourceModel, tokens: Tokens, folder: Path, progress: Progress) -> None:
        self._model = model
        self._tokens = tokens
        self._folder = folder
        self._progress = progress
        rows, length = tokens.shape
        hidden = model.config.block.hidden_size
        self._forward = BlockForward(length)
        self._probe_rows: int = min(rows, -(-PROBE_TOKENS // length))
        self._states = StateSeries(folder, "clean", (length, hidden))
        self._probes = StateSeries(folder, "probes", (self._probe_rows, length, hidden))

    def run(self, calibration: str) -> Measurement:
        """The measurement, whole; it is kept as `measurement.json` in the folder too."""
        blocks = self._model.config.num_blocks
        if self._states.reached is None:
            self._probes[0].write([])
        first = self._states.begin(lambda: embedded(self._model.ends(), self._tokens))
        for block in range(first, blocks):
            self._progress("measuring", self._work(block), self._work(blocks))
            self._measure(block)
        found = Measurement(FORM, self._model.fingerprint, calibration, self._layers(self._divergences()))
        replace_file(self._folder / "measurement.json", encode_measurement(found), sync=True)
        return found

    def _work(self, blocks: int) -> int:
        """What it takes to measure so many blocks: rows that go through one, the probes' among them."""
        kinds: int = max(len({layer.kind for layer in layers}) for layers in self._model.layers)
        probed = kinds * self._probe_rows * (blocks * (blocks + 1) // 2)
        return blocks * len(self._tokens) + probed

    def _measure(self, block: int) -> None:
        """One block; the states behind it come last, since they say that the rest is there."""
        weights = self._model.weights(block)
        statistics = self._observe(weights, block)
        layers = [layer for layer in self._model.layers[block] if layer.shape.quantizable]
        errors: dict[str, dict[int, list[list[float]]]] = {}
        probed: dict[str, dict[str, Tensor]] = {}
        left: dict[str, float] = {}
        for layer, factor in factors(layers, statistics, self._tokens.size):
            weight = weights.matrix(layer.role)
            errors[layer.key] = group_errors(weight, factor, layer)
            rounded = round_matrix(weight, factor, uniform(layer.shape.inputs, PROBE_BITS, PROBE_GROUP))
            probed.setdefault(layer.kind, {})[layer.role] = rounded.dequantized()
            left[layer.kind] = left.get(layer.kind, 0.0) + rounded.error
        del statistics
        self._probes[block + 1].write(self._probed(weights, block, list(probed.values())))
        replace_file(self._block_file(block), msgspec.json.encode(_MeasuredBlock(errors, left)), sync=True)
        self._states[block + 1].commit()
        for series in (self._states, self._probes):
            series.forget_before(block + 1)

    def _observe(self, weights: WeightsOfBlock, block: int) -> Statistics:
        """Calibration through a block; the states behind it are a draft yet."""
        observed, statistics = weights.observed()
        outputs = (self._forward(observed, states) for states in batches(self._states[block]))
        self._states[block + 1].write_draft(outputs)
        return statistics

    def _probed(self, weights: WeightsOfBlock, block: int, replaced: list[dict[str, Tensor]]) -> Iterator[Tensor]:
        """The states of all probes behind a block: first those of earlier blocks, then its own."""
        plain = weights.block()
        for states in self._probes[block].batches(1):
            yield self._forward(plain, states[0])[None]
        before = self._states[block].read(0, self._probe_rows)
        for matrices in replaced:
            yield self._forward(weights.with_matrices(matrices), before)[None]

    def _divergences(self) -> list[float]:
        """How far each probe moved the distribution of the next token, in nats, over all its tokens."""
        blocks, ends = self._model.config.num_blocks, self._model.ends()
        hidden = (self._model.config.block.hidden_size,)
        clean, probes = (StateFile(series[blocks].path, hidden) for series in (self._states, self._probes))
        tokens = self._probe_rows * self._tokens.shape[1]
        sums = [0.0] * (probes.rows // tokens)
        for first in range(0, tokens, HEAD_ROWS):
            self._progress("comparing", first, tokens)
            count = min(HEAD_ROWS, tokens - first)
            reference = log_probabilities(ends, clean.read(first, count))
            for probe in range(len(sums)):
                other = log_probabilities(ends, probes.read(probe * tokens + first, count))
                sums[probe] += float(divergences(reference, other).sum(dtype=torch.float64))
        return [total / tokens for total in sums]

    def _layers(self, moved: list[float]) -> list[MeasuredLayer]:
        found, left = list[MeasuredLayer](), iter(moved)
        for block, layers in enumerate(self._model.layers):
            kept = self._read(block)
            by_kind = {kind: (error, next(left)) for kind, error in kept.probes.items()}
            for layer in layers:
                if layer.key in kept.errors:
                    shape = layer.shape
                    error, divergence = by_kind[layer.kind]
                    measured = kept.errors[layer.key]
                    found.append(MeasuredLayer(layer.key, shape.inputs, shape.outputs, measured, error, divergence))
        return found

    def _read(self, block: int) -> _MeasuredBlock:
        try:
            return msgspec.json.decode(self._block_file(block).read_bytes(), type=_MeasuredBlock)
        except (OSError, msgspec.DecodeError) as error:
            raise CheckpointError(f"{self._block_file(block)} cannot be read: {error}") from error

    def _block_file(self, block: int) -> Path:
        return self._folder / f"measured-{block:05}.json"


def group_errors(weight: Tensor, factor: InverseFactor, layer: QuantizedLayer) -> dict[int, list[list[float]]]:
    """What each group of a layer loses at each of WIDTHS, for each size of groups that the layer has room for."""
    rows, counted = ordered(weight, factor), factor.weights
    inputs = layer.shape.inputs
    return {size: _table(rows, counted, cut(inputs, size)) for size in group_sizes(inputs)}


def _table(rows: Tensor, counted: Tensor, sizes: tuple[int, ...]) -> list[list[float]]:
    groups = zip(torch.split(rows, list(sizes)), torch.split(counted, list(sizes)), strict=True)
    return [[_group_error(some, weights, bits) for bits in WIDTHS] for some, weights in groups]


def _group_error(rows: Tensor, weights: Tensor, bits: int) -> float:
    scales = search_scales(rows, weights, bits).scales
    return float(weighted_error(rows, weights, scales, bits).sum(dtype=torch.float64))
