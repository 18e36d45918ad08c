"""Matrices in panels: nothing is lost on the way in and out."""

from __future__ import annotations

import pytest
import torch

from shoal.engine.proof import numbers
from shoal.model.kernels.panels import BF16, F32, PANEL, Q4, Q8, pack, unpacked, unpacked_columns
from shoal.model.kernels.quantized import quantize

MATRIX = numbers(1, 70, 130)


@pytest.mark.parametrize("bits", [None, 4, 8, 16])
def test_a_matrix_comes_out_as_it_went_in(bits: int | None) -> None:
    """Floats and codes of any shape; single outputs as well as all."""
    codes = quantize(MATRIX, bits) if bits in (4, 8) else None
    half = MATRIX.to(torch.bfloat16) if bits == 16 else MATRIX
    panels = pack(half if codes is None else codes)
    expected = half.to(torch.float32) if codes is None else codes.dequantized()
    assert panels.kind == {None: F32, 16: BF16, 4: Q4, 8: Q8}[bits]
    assert panels.num_panels == 2
    assert torch.equal(unpacked(panels), expected)
    assert torch.equal(unpacked_columns(panels, [69]), expected[[69]])
    assert torch.equal(unpacked_columns(panels, [3, 68, 3]), expected[[3, 68, 3]])


def test_outputs_of_a_panel_lie_together() -> None:
    """fp32: [panels, inputs, 64]."""
    panels = pack(MATRIX)
    assert panels.data.shape[:1] == (2,)
    assert torch.equal(panels.data.view(2, -1, PANEL)[1, 7, :6], MATRIX[64:, 7])
    assert not panels.data.view(2, -1, PANEL)[1, :, 6:].any()


def test_memory() -> None:
    """4-bit codes take half a byte, scales two for each group and output, a bias four."""
    panels = pack(quantize(numbers(1, 128, 256), 4), torch.zeros(128), int8_rows=True)
    assert panels.size_bytes == 128 * 256 // 2 + 128 * 4 * 2 + 128 * 4
    assert panels.int8_rows


def test_other_floats_have_no_panels() -> None:
    """The kernels read fp32 and bf16."""
    with pytest.raises(ValueError, match="float16"):
        pack(MATRIX.to(torch.float16))
