"""The comparison of plans, on a tiny model."""

from __future__ import annotations

from pathlib import Path

import pytest

import bench.quant
from bench.quant import run, uniform_groups
from shoal.quantize.row_groups import MatrixShape, stored_bits
from tests.support.quantized_models import small_llama


@pytest.mark.parametrize("target", [2.5, 3.0, 3.5, 4.0, 5.0])
def test_uniform_plans_have_two_neighbouring_widths(target: float) -> None:
    """In falling order, at real bits within a per cent below the target."""
    shapes = {f"l{number}": MatrixShape(576 if number % 3 else 1536, 1536) for number in range(30)}
    weights = sum(shape.weights for shape in shapes.values())
    groups = uniform_groups(shapes, int(target * weights))
    assert 0.99 * target <= sum(stored_bits(some, shapes[key]) for key, some in groups.items()) / weights <= target
    widths = {group.bits for some in groups.values() for group in some}
    assert len(widths) <= 2
    assert max(widths) - min(widths) <= 1
    assert all(
        [group.bits for group in some] == sorted((g.bits for g in some), reverse=True) for some in groups.values()
    )


def test_all_methods_are_judged_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second run reads what the first has done; ours is no worse than nearest."""
    small_llama(tmp_path / "off-grid")
    monkeypatch.setattr(bench.quant, "LENGTH", 64)
    found = run((4.0,), 2, 4, None, tmp_path)
    assert set(found["results"]) == {"ours 4", "relative 4", "exl2 4", "uniform 4", "nearest 4"}
    assert all(0.9 * 4 <= row["bits_per_weight"] <= 4 for row in found["results"].values())
    assert found["results"]["ours 4"]["divergence"] < found["results"]["nearest 4"]["divergence"]
    assert run((4.0,), 2, 4, None, tmp_path) == found
