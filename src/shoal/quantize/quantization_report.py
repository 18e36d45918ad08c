"""What a quantization has made of a model: as data, and as a page that needs nothing else."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from shoal.quantize.bit_plan import BitPlan
from shoal.quantize.block_layers import QuantizedLayer
from shoal.quantize.evaluation import Evaluation
from shoal.quantize.quantizing import RoundedLayer
from shoal.quantize.row_groups import float_bits, runs, stored_bits

REPORT = "quantization.json"
PAGE = "quantization.html"

CELL_WIDTH = 26
CELL_HEIGHT = 22
LABEL_WIDTH = 110


class JobKey(msgspec.Struct, frozen=True):
    """What a quantization is made from: the same key gives the same bytes."""

    fingerprint: str
    calibration: str
    evaluation: str
    measurement: str
    head_bits: int


class ReportedLayer(msgspec.Struct, frozen=True):
    """A layer of a block: `groups` as (bits, inputs of a group, how many groups); none where it stayed in fp16.

    `relative_error`: the share of its outputs' square that its error has.
    """

    key: str
    kind: str
    block: int
    bits_per_weight: float
    groups: list[tuple[int, int, int]]
    relative_error: float


class QuantizationReport(msgspec.Struct, frozen=True):
    """`bits_per_weight` counts all that the blocks' layers take; `bits_per_parameter` the whole file, each parameter once.

    `foreseen` nats are what the plan's layers cost by the measurement, and no plan costs less than `bound`.
    """

    model: str
    job: JobKey
    target: float
    bits_per_weight: float
    bits_per_parameter: float
    foreseen: float
    bound: float
    evaluation: Evaluation
    layers: list[ReportedLayer]


def make_report(
    model: str,
    job: JobKey,
    target: float,
    plan: BitPlan,
    blocks: Sequence[Sequence[QuantizedLayer]],
    rounded: Sequence[RoundedLayer],
    evaluation: Evaluation,
    bits_per_parameter: float,
) -> QuantizationReport:
    """A report of all layers, block after block."""
    errors = {layer.key: layer.relative_error for layer in rounded}
    layers = [_reported(layer, number, plan, errors) for number, block in enumerate(blocks) for layer in block]
    return QuantizationReport(
        model, job, target, plan.bits_per_weight, bits_per_parameter, plan.error, plan.bound, evaluation, layers
    )


def _reported(layer: QuantizedLayer, block: int, plan: BitPlan, errors: dict[str, float]) -> ReportedLayer:
    groups = plan.groups.get(layer.key)
    bits = float_bits(layer.shape) if groups is None else stored_bits(groups, layer.shape)
    each = bits / layer.shape.weights
    return ReportedLayer(layer.key, layer.kind, block, each, runs(groups or ()), errors.get(layer.key, 0.0))


def encode_report(report: QuantizationReport) -> bytes:
    """The file's bytes."""
    return msgspec.json.format(msgspec.json.encode(report), indent=1)


class _Chart(NamedTuple):
    """A number of every layer, as it is shown and as a shade from 0 (light) to 1."""

    title: str
    number: Callable[[ReportedLayer], float]
    text: Callable[[float], str]
    shade: Callable[[float], float]


CHARTS = (
    _Chart(
        "Bits per weight", lambda layer: layer.bits_per_weight, lambda bits: f"{bits:.1f}", lambda bits: (bits - 2) / 6
    ),
    _Chart(
        "Error of the layer's outputs, in per cent of their square",
        lambda layer: 100 * layer.relative_error,
        lambda share: f"{share:.1f}" if share < 9.95 else f"{share:.0f}",
        lambda share: (share / 20) ** 0.5,
    ),
)


def report_page(report: QuantizationReport) -> str:
    """The page, with a chart of every layer's bits and one of its error."""
    title = f"{html.escape(report.model)} at {report.bits_per_weight:.3f} bits per weight"
    charts = "".join(f"<h2>{html.escape(chart.title)}</h2>{_svg(report.layers, chart)}" for chart in CHARTS)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
        f"<h1>{title}</h1>{_facts(report)}{charts}</html>\n"
    )


STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2em auto;max-width:72em;padding:0 1em;color:#222}"
    "table{border-collapse:collapse}td{padding:.1em 1.5em .1em 0}td:last-child{font-variant-numeric:tabular-nums}"
    "svg{max-width:100%;height:auto}text{font:10px system-ui,sans-serif}"
)


def _facts(report: QuantizationReport) -> str:
    found = report.evaluation
    facts = {
        "bits per weight of the blocks' layers, with all that stands beside the codes": f"{report.bits_per_weight:.4f}",
        "bits per parameter of the whole file": f"{report.bits_per_parameter:.3f}",
        "bits of the head": f"{report.job.head_bits}",
        "divergence from the original, nats": f"{found.divergence:.4f} ± {found.divergence_error:.4f}",
        "perplexity, the original's": f"{found.perplexity:.3f}, {found.original_perplexity:.3f}",
        "the same likeliest token": f"{100 * found.same_top:.2f} %",
        "predictions that these were measured on": f"{found.tokens:,}",
        "divergence that the measurement foresaw, nats": f"{report.foreseen:.4f} (no plan: less than {report.bound:.4f})",
    }
    rows = "".join(f"<tr><td>{html.escape(what)}</td><td>{html.escape(fact)}</td></tr>" for what, fact in facts.items())
    return f"<table>{rows}</table>"


def _svg(layers: Sequence[ReportedLayer], chart: _Chart) -> str:
    """Kinds of layers below each other, blocks from left to right; experts of a block by their mean."""
    kinds = list(dict.fromkeys(layer.kind for layer in layers))
    blocks = 1 + max(layer.block for layer in layers)
    width, height = LABEL_WIDTH + blocks * CELL_WIDTH, (len(kinds) + 1) * CELL_HEIGHT
    parts = [_label(LABEL_WIDTH + (n + 0.5) * CELL_WIDTH, 0, str(n), "middle") for n in range(blocks)]
    for row, kind in enumerate(kinds, 1):
        parts.append(_label(LABEL_WIDTH - 8, row, kind, "end"))
        for block in range(blocks):
            numbers = [chart.number(layer) for layer in layers if (layer.kind, layer.block) == (kind, block)]
            if numbers:
                parts.append(_cell(block, row, sum(numbers) / len(numbers), chart))
    return f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img">{"".join(parts)}</svg>'


def _label(x: float, row: int, text: str, anchor: str) -> str:
    return f'<text x="{x:g}" y="{row * CELL_HEIGHT + 15}" text-anchor="{anchor}">{html.escape(text)}</text>'


def _cell(block: int, row: int, number: float, chart: _Chart) -> str:
    shade = min(1.0, max(0.0, chart.shade(number)))
    x, y = LABEL_WIDTH + block * CELL_WIDTH, row * CELL_HEIGHT
    colour = f"hsl(210 60% {95 - 60 * shade:.0f}%)"
    ink = "#fff" if shade > 0.55 else "#222"
    text = (
        f'<text x="{x + CELL_WIDTH / 2:g}" y="{y + 15}" text-anchor="middle" fill="{ink}">{chart.text(number)}</text>'
    )
    return f'<rect x="{x}" y="{y}" width="{CELL_WIDTH - 1}" height="{CELL_HEIGHT - 1}" fill="{colour}"/>{text}'
