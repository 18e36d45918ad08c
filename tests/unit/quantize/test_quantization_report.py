"""The report as data and as a page."""

from __future__ import annotations

from xml.etree import ElementTree

import msgspec

from shoal.quantize.bit_plan import BitPlan
from shoal.quantize.block_layers import QuantizedLayer
from shoal.quantize.evaluation import Evaluation
from shoal.quantize.quantization_report import JobKey, QuantizationReport, encode_report, make_report, report_page
from shoal.quantize.quantizing import RoundedLayer
from shoal.quantize.row_groups import MatrixShape, RowGroup

LAYERS = [
    [
        QuantizedLayer(f"l.{block}.up", "up", MatrixShape(96, 64)),
        QuantizedLayer(f"l.{block}.down", "down", MatrixShape(40, 64)),
    ]
    for block in range(3)
]


def a_report(name: str = "A model") -> QuantizationReport:
    """Of three blocks; one layer of each stays in fp16."""
    groups = {f"l.{block}.up": (RowGroup(4, 64), RowGroup(3, 32)) for block in range(3)}
    rounded = [RoundedLayer(f"l.{block}.up", 0.5, 10.0 * block) for block in range(3)]
    evaluation = Evaluation(100, 0.125, 0.01, 20.0, 18.0, 0.9)
    plan = BitPlan(groups, 3.99, 0.1, 0.0999)
    return make_report(name, JobKey("f", "c", "e", "", 6), 4.0, plan, LAYERS, rounded, evaluation, 5.5)


def test_it_comes_back() -> None:
    """Widths as they are written, errors as shares, fp16 where nothing was rounded."""
    report = a_report()
    assert msgspec.json.decode(encode_report(report), type=QuantizationReport) == report
    up, down = report.layers[2:4]
    assert up.groups == [(4, 64, 1), (3, 32, 1)]
    assert up.relative_error == 0.05
    assert (down.groups, down.bits_per_weight) == ([], 16.0)


def test_the_page_shows_every_layer_and_needs_nothing_else() -> None:
    """Two charts of valid markup; a model's name is text and nothing more."""
    page = report_page(a_report("<script>alert(1)</script> & co"))
    assert "<script" not in page
    assert "0.1250 ± 0.0100" in page
    charts = page.split("<svg")[1:]
    assert len(charts) == 2
    for chart in charts:
        drawn = ElementTree.fromstring("<svg" + chart.partition("</svg>")[0] + "</svg>")
        assert len(drawn.findall("rect")) == 6
