"""Matrices in panels: nothing is lost on the way in and out."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from shoal.engine.proof import numbers
from shoal.model.kernels.panel_stream import PanelStreams
from shoal.model.kernels.panels import BF16, F32, PANEL, FloatPanels, pack, unpacked, unpacked_columns
from shoal.model.kernels.quantized import quantize
from shoal.model.quant.packed_matrix import Section
from tests.support import packed_matrices

MATRIX = numbers(1, 70, 130)


@pytest.mark.parametrize("bits", [None, 4, 8, 16])
def test_a_matrix_comes_out_as_it_went_in(bits: int | None) -> None:
    """Floats and codes of any shape; single outputs as well as all."""
    codes = quantize(MATRIX, bits) if bits in (4, 8) else None
    half = MATRIX.to(torch.bfloat16) if bits == 16 else MATRIX
    panels = pack(half if codes is None else codes)
    expected = half.to(torch.float32) if codes is None else codes.dequantized()
    (matrix,) = panels.matrices
    assert isinstance(matrix, PanelStreams) if codes is not None else matrix.kind == {None: F32, 16: BF16}[bits]
    assert panels.columns == 128
    assert torch.equal(unpacked(panels), expected)
    assert torch.equal(unpacked_columns(panels, [69]), expected[[69]])
    assert torch.equal(unpacked_columns(panels, [3, 68, 3]), expected[[3, 68, 3]])


def test_outputs_of_a_panel_lie_together() -> None:
    """fp32: [panels, inputs, 64]."""
    (matrix,) = pack(MATRIX).matrices
    assert isinstance(matrix, FloatPanels)
    assert matrix.data.shape[:1] == (2,)
    assert torch.equal(matrix.data.view(2, -1, PANEL)[1, 7, :6], MATRIX[64:, 7])
    assert not matrix.data.view(2, -1, PANEL)[1, :, 6:].any()


def test_memory() -> None:
    """4-bit codes take half a byte, scales of EXL2's grid as much for each group and output, a unit four for each group."""
    panels = pack(quantize(numbers(1, 128, 256), 4), torch.zeros(128), int8_rows=True)
    assert panels.size_bytes == 128 * 256 // 2 + 128 * 4 // 2 + 4 * 4 + (128 + PANEL) * 4
    assert panels.int8_rows
    assert not pack(MATRIX, int8_rows=True).int8_rows


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda one: one._replace(minima=one.minima._replace(groups_per_unit=2)), "other levels"),
        (lambda one: one._replace(minima=one.minima._replace(steps=None)), "other levels"),
        (lambda one: one._replace(zero=256), "zeros"),
    ],
)
def test_levels_that_have_no_place(change: Callable[[Section], Section], what: str) -> None:
    """No format has them."""
    matrix = packed_matrices.of_form("minima", 8, 64)
    with pytest.raises(ValueError, match=what):
        pack(matrix._replace(sections=(change(matrix.sections[0]),)))


def test_other_floats_have_no_panels() -> None:
    """The kernels read fp32 and bf16."""
    with pytest.raises(ValueError, match="float16"):
        pack(MATRIX.to(torch.float16))
