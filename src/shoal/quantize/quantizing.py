"""The third phase: every layer rounded by a plan, one block after the other.

Calibration goes through the blocks that are rounded already, so that a block makes up for what those before it have lost.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import torch
from torch import Tensor

from shoal.errors import CheckpointError
from shoal.files import replace_file
from shoal.model.kernels.linears import Linear
from shoal.model.weights.block_loading import load_ends
from shoal.quantize.bit_plan import HEAD_SHARES, BitPlan
from shoal.quantize.block_forward import BlockForward, Statistics, WeightsOfBlock
from shoal.quantize.block_layers import QuantizedLayer
from shoal.quantize.calibration import Tokens
from shoal.quantize.exl2_tensors import exl2_tensors
from shoal.quantize.hessian import InputStatistics, factored
from shoal.quantize.layer_factors import factors
from shoal.quantize.measuring import Progress
from shoal.quantize.rounding import RoundingRule, output_error, round_matrix
from shoal.quantize.row_groups import by_shares
from shoal.quantize.source_model import SourceModel, batches, embedded
from shoal.quantize.state_files import StateSeries
from shoal.quantize.tensor_file import write_tensors


class RoundedLayer(msgspec.Struct, frozen=True):
    """A layer as it was rounded: the squared error of its outputs, and their square, both for one token on average."""

    key: str
    error: float
    square: float

    @property
    def relative_error(self) -> float:
        """The share of the outputs' square that the error has."""
        return self.error / self.square if self.square > 0 else 0.0


class Quantizing:
    """Rounds a model by a plan in a folder, where it goes on after it was ended at any moment."""

    def __init__(
        self,
        model: SourceModel,
        tokens: Tokens,
        folder: Path,
        progress: Progress,
        rule: RoundingRule = RoundingRule(),
    ) -> None:
        self._model = model
        self._rule = rule
        self._tokens = tokens
        self._folder = folder
        self._progress = progress
        length = tokens.shape[1]
        self._forward = BlockForward(length)
        self._states = StateSeries(folder, "rounded", (length, model.config.block.hidden_size))

    def run(self, plan: BitPlan, head_bits: int | None, what: str) -> None:
        """The files of all blocks and, with `head_bits`, of the head, in the folder."""
        blocks = self._model.config.num_blocks
        first = self._states.begin(lambda: embedded(self._model.ends(), self._tokens))
        for block in range(first, blocks):
            self._progress(what, block, blocks + 1)
            self._quantize(block, plan)
        self._progress(what, blocks, blocks + 1)
        if head_bits is not None and self._model.head.shape.quantizable and not self.head_file.exists():
            self._quantize_head(head_bits)

    @property
    def head_file(self) -> Path:
        """Where the head's tensors are."""
        return self._folder / "head.safetensors"

    def block_file(self, block: int) -> Path:
        """Where the tensors of a block's layers are."""
        return self._folder / f"block-{block:05}.safetensors"

    def layers(self) -> list[RoundedLayer]:
        """What is known of every layer that was rounded."""
        found = list[RoundedLayer]()
        for block in range(self._model.config.num_blocks):
            found += self._read(self._error_file(block))
        return found

    def _read(self, path: Path) -> list[RoundedLayer]:
        try:
            return msgspec.json.decode(path.read_bytes(), type=list[RoundedLayer])
        except (OSError, msgspec.DecodeError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from error

    def _error_file(self, block: int) -> Path:
        return self._folder / f"block-{block:05}.json"

    def _quantize(self, block: int, plan: BitPlan) -> None:
        """One block; the states behind it come last, since they say that the rest is there."""
        weights = self._model.weights(block)
        tensors, rounded, errors = dict[str, Tensor](), dict[str, Tensor](), list[RoundedLayer]()
        layers = [layer for layer in self._model.layers[block] if layer.shape.quantizable]
        statistics = self._observe(weights, block)
        for layer, factor in factors(layers, statistics, self._tokens.size, self._rule):
            weight = weights.matrix(layer.role)
            matrix = round_matrix(weight, factor, plan.groups[layer.key], self._rule.search)
            tensors |= exl2_tensors(layer.key, matrix)
            rounded[layer.role] = matrix.dequantized()
            errors.append(self._judged(layer, weight, rounded[layer.role], statistics[layer.role]))
        write_tensors(self.block_file(block), tensors)
        replace_file(self._error_file(block), msgspec.json.encode(errors), sync=True)
        after = weights.with_matrices(rounded)
        self._states[block + 1].write(self._forward(after, states) for states in batches(self._states[block]))
        self._states.forget_before(block + 1)

    def _judged(self, layer: QuantizedLayer, weight: Tensor, rounded: Tensor, seen: InputStatistics) -> RoundedLayer:
        hessian = seen.products / self._tokens.size
        return RoundedLayer(
            layer.key, output_error(weight - rounded, hessian), output_error(weight.to(torch.float32), hessian)
        )

    def _observe(self, weights: WeightsOfBlock, block: int) -> Statistics:
        observed, statistics = weights.observed()
        for states in batches(self._states[block]):
            self._forward(observed, states)
        return statistics

    def _quantize_head(self, bits: int) -> None:
        layer, statistics = self._model.head, InputStatistics(self._model.config.block.hidden_size)
        ends = load_ends(self._model.checkpoint, self._model.config, make=lambda *_: HeadInputs(statistics))
        for states in batches(self._states[self._model.config.num_blocks]):
            ends.logits(states.flatten(0, 1), 1)
        shares, sizes = HEAD_SHARES[bits]
        groups = by_shares(layer.shape.inputs, shares, sizes)
        matrix = round_matrix(self._model.head_weight(), factored(statistics.products / self._tokens.size), groups)
        write_tensors(self.head_file, exl2_tensors(layer.key, matrix))


class HeadInputs(Linear):
    """Stands in a head's place and adds its inputs to statistics; what it returns means nothing."""

    def __init__(self, statistics: InputStatistics) -> None:
        self.out_features = self.in_features = statistics.products.shape[0]
        self._statistics = statistics

    def __call__(self, rows: Tensor) -> Tensor:
        self._statistics.add(rows)
        return rows

    def columns(self, outputs: list[int]) -> Tensor:
        raise NotImplementedError("it has no weights")

    @property
    def size_bytes(self) -> int:
        return 0
