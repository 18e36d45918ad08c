"""Compiled linear layers: right against the reference, and the same bits for every height, thread count and instruction set."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from shoal.engine.proof import numbers
from shoal.model.kernels import cpu
from shoal.model.kernels.linears import torch_linear
from shoal.model.kernels.native_linear import NativeLinear
from shoal.model.kernels.panels import Panels, pack, unpacked
from shoal.model.kernels.quantized import Matrix, Quantized, quantize
from tests.kernels.natively import contexts, instruction_sets, needs_kernels
from tests.support import reference_kernels as reference

pytestmark = needs_kernels

SHAPES = [(64, 64), (200, 100), (1, 7), (131, 577)]
HEIGHTS = (1, 2, 3, 4, 5, 6, 7, 8, 13, 40, 129, 300)


def made(kind: str, out_features: int, in_features: int) -> tuple[Panels, Matrix, Tensor]:
    """A packed matrix of a kind, the same unpacked, and its bias."""
    weight, bias = numbers(1, out_features, in_features), numbers(2, out_features)
    matrix: Matrix = {
        "f32": lambda: weight,
        "bf16": lambda: weight.to(torch.bfloat16),
        "q8": lambda: quantize(weight, 8),
        "q4": lambda: quantize(weight, 4),
    }[kind[:4].rstrip("i")]()
    return pack(matrix, bias, kind.endswith("i")), matrix, bias


@pytest.mark.parametrize("kind", ["f32", "bf16", "q8", "q4", "q8i", "q4i"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_row_has_the_same_bits_in_any_company(kind: str, shape: tuple[int, int]) -> None:
    """Alone or among many, at any place, for any number of threads and instruction set; and it is what it should be."""
    panels, matrix, bias = made(kind, *shape)
    rows = numbers(3, HEIGHTS[-1] + 1, shape[1])
    bits = None
    for context in contexts():
        linear = NativeLinear(panels, context)
        whole = linear(rows)
        bits = whole if bits is None else bits
        assert torch.equal(whole, bits)
        for turn, height in enumerate(HEIGHTS):
            first = turn % 2
            assert torch.equal(linear(rows[first : first + height]), whole[first : first + height])
    assert bits is not None
    weight = matrix.dequantized() if isinstance(matrix, Quantized) else matrix.to(torch.float32)
    expected = reference.linear(rows, weight, bias)
    loose = kind.endswith("i")  # inputs were rounded to one part in 254 of the largest
    torch.testing.assert_close(
        bits[:, : shape[0]], expected, rtol=0, atol=0.02 * shape[1] ** 0.5 if loose else 2e-5 * shape[1]
    )
    assert not bits[:, shape[0] :].any()


@pytest.mark.parametrize("kind", ["f32", "bf16", "q8", "q4"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_panels_hold_the_matrix(kind: str, shape: tuple[int, int]) -> None:
    """Unpacked, it is what was packed; single outputs can be looked up, as an embedding's rows are."""
    panels, matrix, _ = made(kind, *shape)
    weight = matrix.dequantized() if isinstance(matrix, Quantized) else matrix.to(torch.float32)
    assert torch.equal(unpacked(panels), weight)
    chosen = [shape[0] - 1, 0]
    linear = NativeLinear(panels, cpu.Context(1))
    assert torch.equal(linear.columns(chosen), weight[chosen])
    assert torch.equal(torch_linear(matrix).columns(chosen), weight[chosen])
    assert linear.size_bytes == panels.size_bytes > 0


def test_what_is_not_finite_stays_so() -> None:
    """NaN and infinity in a row come out of every kind, in that row only: nothing is rounded away."""
    rows = numbers(3, 3, 100)
    rows[1, 50] = float("nan")
    rows[2, 99] = float("inf")
    for kind in ("f32", "bf16", "q8", "q4", "q8i", "q4i"):
        for limit in instruction_sets():
            out = NativeLinear(made(kind, 200, 100)[0], cpu.Context(1, limit))(rows)[:, :200]
            assert out[0].isfinite().all()
            assert not out[1].isfinite().any()
            assert not out[2].isfinite().any()


def test_other_dtypes_are_refused() -> None:
    """There are no panels of fp16 or of fp64."""
    for dtype in (torch.float16, torch.float64):
        with pytest.raises(ValueError, match="no panels"):
            pack(torch.zeros(4, 4, dtype=dtype))
