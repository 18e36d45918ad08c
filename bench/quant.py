"""What a few bits cost: our plan, ExLlama's, and the same widths everywhere, in nats from the original.

SmolLM2-135M, off the grid that its file has (`bench.off_grid`). All are rounded on the same text and judged on another.
Head and embedding stay as they are, so that only the blocks differ.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch
from safetensors.torch import load_file

from bench.exl2_ladder import RULE, LadderOption, choose, measure_block
from bench.off_grid import write_off_grid
from bench.report import commit, hardware
from shoal.cli.terminal import waits_for
from shoal.model.quant import exl2
from shoal.model.weights.tokenizer import load_tokenizer
from shoal.quantize.bit_plan import BitPlan, plan_bits
from shoal.quantize.block_forward import BlockForward
from shoal.quantize.calibration import digest_of, package_text, token_rows
from shoal.quantize.evaluation import Evaluation, compare
from shoal.quantize.measurement import Measurement, read_measurement
from shoal.quantize.measuring import Measuring
from shoal.quantize.quantizing import Quantizing
from shoal.quantize.rounding import RoundingRule, output_error
from shoal.quantize.row_groups import Groups, MatrixShape, RowGroup, cut, stored_bits
from shoal.quantize.source_model import SourceModel, batches, embedded
from shoal.quantize.state_files import StateFile, StateSeries

LENGTH = 512
CALIBRATION_ROWS = 32
LADDER_ROWS = 2
"""Rows on which ExLlama's options are measured."""

SQUARE_ROWS = 8
UNIFORM_GROUP = 64


class PlanMethod(NamedTuple):
    """How bits are chosen for a target, and how weights are rounded then."""

    plan: Callable[[float], BitPlan]
    rule: RoundingRule


class Comparison:
    """Quantizes and judges a model in a folder, in which finished parts are kept."""

    def __init__(self, folder: Path, rows: int, calibration_rows: int) -> None:
        source = folder / "off-grid"
        if not (source / "config.json").exists():
            write_off_grid(source)
        self._folder = folder
        self._model = SourceModel.open(str(source))
        encode = load_tokenizer(self._model.checkpoint).encode
        self._calibration = token_rows([package_text("calibration")], encode, calibration_rows, LENGTH)
        self._judged = token_rows([package_text("evaluation")], encode, rows, LENGTH)
        self._layers = [layer for block in self._model.layers for layer in block]
        self._forward = BlockForward(LENGTH)

    def methods(self) -> dict[str, PlanMethod]:
        """By name; a method measures when it is first asked for a plan."""
        return {
            "ours": PlanMethod(self._ours, RoundingRule()),
            "relative": PlanMethod(self._relative, RoundingRule()),
            "exl2": PlanMethod(self._ladder, RULE),
            "uniform": PlanMethod(self._uniform, RoundingRule()),
            "nearest": PlanMethod(self._uniform, RoundingRule(feedback=False)),
        }

    def judged(self, name: str, method: PlanMethod, target: float) -> dict[str, float]:
        """One method at one target."""
        folder = self._part(f"{name}-{target:g}-{len(self._judged)}")
        kept = folder / "evaluation.json"
        plan = method.plan(target)
        if not kept.exists():
            waits_for(f"{name} at {target:g} bits")
            quantizing = Quantizing(self._model, self._calibration, folder, _quiet, method.rule)
            quantizing.run(plan, None, name)
            found = self._compare(quantizing)
            kept.write_bytes(msgspec.json.encode(found))
        found = msgspec.json.decode(kept.read_bytes(), type=Evaluation)
        return {
            "bits_per_weight": plan.bits_per_weight,
            "divergence": found.divergence,
            "standard_error": found.divergence_error,
            "perplexity": found.perplexity,
            "same_top": found.same_top,
        }

    def _part(self, name: str) -> Path:
        folder = self._folder / name
        folder.mkdir(exist_ok=True)
        return folder

    def _ours(self, target: float) -> BitPlan:
        return plan_bits(self._layers, self._measurement().options(self._model.quantizable), target)

    def _measurement(self) -> Measurement:
        folder = self._part(f"measure-{digest_of(self._calibration)}")
        if not (folder / "measurement.json").exists():
            waits_for("measuring")
            Measuring(self._model, self._calibration, folder, _quiet).run(digest_of(self._calibration))
        return read_measurement(folder / "measurement.json", self._model.fingerprint)

    def _relative(self, target: float) -> BitPlan:
        """Ours, where a layer's error counts by the share that it has of the layer's outputs, not by what the model minds."""
        measured = self._measurement()
        shares = [
            msgspec.structs.replace(layer, probe_error=square, probe_divergence=1.0)
            for layer, square in zip(measured.layers, self._squares(), strict=True)
        ]
        options = msgspec.structs.replace(measured, layers=shares).options(self._model.quantizable)
        return plan_bits(self._layers, options, target)

    def _squares(self) -> list[float]:
        """Of every layer the square of its outputs, for one token on average."""
        kept = self._folder / f"squares-{digest_of(self._calibration)}.json"
        if kept.exists():
            return msgspec.json.decode(kept.read_bytes(), type=list[float])
        found: list[float] = []
        states = torch.cat(list(embedded(self._model.ends(), self._calibration[:SQUARE_ROWS])))
        for block, layers in enumerate(self._model.layers):
            weights = self._model.weights(block)
            observed, statistics = weights.observed()
            states = self._forward(observed, states)
            for layer in layers:
                seen = statistics[layer.role]
                found.append(output_error(weights.matrix(layer.role).float(), seen.products / seen.rows))
        kept.write_bytes(msgspec.json.encode(found))
        return found

    def _ladder(self, target: float) -> BitPlan:
        modules = self._ladder_options()
        weights = sum(layer.shape.weights for layer in self._layers)
        chosen = choose(modules, int(target * weights))
        groups = dict[str, Groups]()
        for number, (options, index) in enumerate(zip(modules, chosen, strict=True)):
            keys = {layer.role: layer.key for layer in self._model.layers[number // 2]}
            groups |= {keys[role]: some for role, some in options[index].groups.items()}
        return self._plan(groups)

    def _ladder_options(self) -> list[list[LadderOption]]:
        """Of every block's attention and MLP, measured block after block along the original's states."""
        kept = self._folder / f"ladder-{digest_of(self._calibration)}.json"
        if kept.exists():
            return msgspec.json.decode(kept.read_bytes(), type=list[list[LadderOption]])
        found: list[list[LadderOption]] = []
        states = torch.cat(list(embedded(self._model.ends(), self._calibration[:LADDER_ROWS])))
        for block, layers in enumerate(self._model.layers):
            waits_for(f"measuring ExLlama's ladder, block {block}")
            weights = self._model.weights(block)
            found += measure_block(weights, layers, states, self._forward)
            states = self._forward(weights.block(), states)
        kept.write_bytes(msgspec.json.encode(found))
        return found

    def _uniform(self, target: float) -> BitPlan:
        weights = sum(layer.shape.weights for layer in self._layers)
        return self._plan(uniform_groups({layer.key: layer.shape for layer in self._layers}, int(target * weights)))

    def _plan(self, groups: dict[str, Groups]) -> BitPlan:
        bits = sum(stored_bits(groups[layer.key], layer.shape) for layer in self._layers)
        return BitPlan(groups, bits / sum(layer.shape.weights for layer in self._layers), math.nan, math.nan)

    def _compare(self, quantizing: Quantizing) -> Evaluation:
        checkpoint = self._model.checkpoint
        states = self._original(), self._rounded(quantizing)
        return compare(checkpoint, checkpoint, states, self._judged)

    def _original(self) -> StateFile:
        return self._through(self._part(f"original-{len(self._judged)}"), None)

    def _rounded(self, quantizing: Quantizing) -> StateFile:
        return self._through(quantizing.block_file(0).parent, quantizing)

    def _through(self, folder: Path, quantizing: Quantizing | None) -> StateFile:
        """The judged text behind the last block, with the original's blocks or with rounded ones."""
        blocks, hidden = self._model.config.num_blocks, self._model.config.block.hidden_size
        series = StateSeries(folder, "judged", (LENGTH, hidden))
        first = series.begin(lambda: embedded(self._model.ends(), self._judged))
        for block in range(first, blocks):
            weights = self._model.weights(block)
            made = weights.block()
            if quantizing is not None:
                tensors = load_file(quantizing.block_file(block))
                layers = self._model.layers[block]
                read = {layer.role: exl2.read(tensors, layer.key, layer.shape.outputs) for layer in layers}
                made = weights.with_matrices({role: one.dequantized().float() for role, one in read.items()})
            series[block + 1].write(self._forward(made, states) for states in batches(series[block]))
            series.forget_before(block + 1)
        return series[blocks]


def _quiet(what: str, done: int, total: int) -> None:
    waits_for(f"{what}: {100 * done // total} %")


def uniform_groups(shapes: dict[str, MatrixShape], budget_bits: int) -> dict[str, Groups]:
    """One share of two neighbouring widths in every layer, the wider ones first; then, layer after layer, one group more of
    them while the bits last."""
    counts = dict.fromkeys(shapes, 0)
    ladder = (2, 3, 4, 5, 6, 8)

    def groups(narrow: int, wider: dict[str, int]) -> dict[str, Groups]:
        wide = ladder[ladder.index(narrow) + 1]
        return {
            key: tuple(
                RowGroup(wide if at < wider[key] else narrow, size)
                for at, size in enumerate(cut(shape.inputs, UNIFORM_GROUP))
            )
            for key, shape in shapes.items()
        }

    def bits(narrow: int, wider: dict[str, int]) -> int:
        return sum(stored_bits(some, shapes[key]) for key, some in groups(narrow, wider).items())

    narrow = max((one for one in ladder[:-1] if bits(one, counts) <= budget_bits), default=ladder[0])
    share = 0.0
    for step in range(1, 13):  # bisection
        tried = share + 0.5**step
        wider = {key: int(tried * len(cut(shape.inputs, UNIFORM_GROUP))) for key, shape in shapes.items()}
        if bits(narrow, wider) <= budget_bits:
            share, counts = tried, wider
    used = bits(narrow, counts)
    for key, shape in shapes.items():
        more = {**counts, key: min(counts[key] + 1, len(cut(shape.inputs, UNIFORM_GROUP)))}
        cost = stored_bits(groups(narrow, more)[key], shape) - stored_bits(groups(narrow, counts)[key], shape)
        if used + cost <= budget_bits:
            used, counts = used + cost, more
    return groups(narrow, counts)


def run(
    targets: tuple[float, ...],
    rows: int,
    calibration_rows: int = CALIBRATION_ROWS,
    only: str | None = None,
    folder: Path | None = None,
) -> dict[str, Any]:
    """`python -m bench quant`: by method and target what is lost; `ratio` is the worst of ours ÷ uniform."""
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="shoal-quant-") as temporary:
            return run(targets, rows, calibration_rows, only, Path(temporary))
    folder.mkdir(parents=True, exist_ok=True)
    comparison = Comparison(folder, rows, calibration_rows)
    methods = {name: one for name, one in comparison.methods().items() if only is None or only in name}
    found = {
        f"{name} {target:g}": comparison.judged(name, method, target)
        for target in targets
        for name, method in methods.items()
    }
    ratios = {
        f"ours / {other} {target:g}": found[f"ours {target:g}"]["divergence"]
        / found[f"{other} {target:g}"]["divergence"]
        for target in targets
        for other in methods
        if "ours" in methods and other != "ours"
    }
    worst = max((ratio for name, ratio in ratios.items() if "uniform" in name), default=math.nan)
    return {
        "name": "quant",
        "unit": "nats",
        "value": max((row["divergence"] for name, row in found.items() if name.startswith("ours")), default=math.nan),
        "ratio": worst,
        "tokens": rows * LENGTH,
        "calibration_tokens": calibration_rows * LENGTH,
        "results": found,
        "ratios": ratios,
        "hardware": hardware(),
        "commit": commit(),
    }
