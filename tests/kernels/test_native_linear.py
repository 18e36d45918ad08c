"""Compiled linear layers: right against the reference, and the same bits for every height, thread count and instruction set."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from shoal.engine.proof import numbers
from shoal.model.kernels import cpu
from shoal.model.kernels.linears import torch_linear
from shoal.model.kernels.native_linear import NativeLinear
from shoal.model.kernels.panels import Panels, pack, unpacked
from shoal.model.kernels.quantized import BITS, Matrix, weights_of
from shoal.model.quant import ggml
from tests.kernels.natively import contexts, instruction_sets, needs_kernels
from tests.support import packed_matrices
from tests.support import reference_kernels as reference

pytestmark = needs_kernels

SHAPES = [(64, 64), (200, 100), (1, 7), (131, 577)]
HEIGHTS = (1, 2, 3, 4, 5, 6, 7, 8, 13, 40, 129, 300)
FLOATS = {"f32": torch.float32, "bf16": torch.bfloat16}
ROUNDED = tuple(f"rounded to {bits}" for bits in BITS)
KINDS = (*FLOATS, *ROUNDED, *packed_matrices.FORMS, "mixed")
CASES = [
    (kind, shape) for kind in KINDS for shape in (SHAPES if kind in (*FLOATS, ROUNDED[2], "mixed") else SHAPES[3:])
]
"""Every kind in an odd shape, and some in every shape."""


def made(kind: str, outputs: int, inputs: int) -> tuple[Matrix, Tensor]:
    """A matrix of a kind, and a bias."""
    weight, bias = numbers(1, outputs, inputs), numbers(2, outputs)
    if kind in FLOATS:
        return weight.to(FLOATS[kind]), bias
    if kind in ROUNDED:
        return packed_matrices.rounded(weight, int(kind[-1])), bias
    if kind == "mixed":
        return packed_matrices.mixed(outputs, inputs), bias
    return packed_matrices.of_form(kind, outputs, inputs), bias


def all_bits(panels: Panels, rows: Tensor) -> Tensor:
    """What comes out, the same for every height and place, number of threads and instruction set."""
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
    return bits


def check(bits: Tensor, matrix: Matrix, rows: Tensor, bias: Tensor, int8_rows: bool) -> None:
    """It is what it should be; with 8-bit rows within what a rounded number may be off by."""
    weight = weights_of(matrix).to(torch.float32)
    expected = reference.linear(rows, weight, bias)
    summed = 2e-6 * (rows.abs() @ weight.abs().T) + 1e-6
    rounded = 0.1 * rows.abs().amax(1, keepdim=True) * weight.norm(dim=1) if int8_rows else 0.0
    assert ((bits[:, : len(weight)] - expected).abs() <= summed + rounded).all()
    assert not bits[:, len(weight) :].any()


@pytest.mark.parametrize("int8_rows", [False, True], ids=["fp32", "int8"])
@pytest.mark.parametrize(("kind", "shape"), CASES, ids=str)
def test_a_row_has_the_same_bits_in_any_company(kind: str, shape: tuple[int, int], int8_rows: bool) -> None:
    """Alone or among many, at any place, for any number of threads and instruction set; and it is what it should be."""
    if int8_rows and kind in FLOATS:
        pytest.skip("rows are rounded where weights are codes")
    matrix, bias = made(kind, *shape)
    rows = numbers(3, HEIGHTS[-1] + 1, shape[1])
    check(all_bits(pack(matrix, bias, int8_rows), rows), matrix, rows, bias, int8_rows)


@pytest.mark.parametrize("int8_rows", [False, True], ids=["fp32", "int8"])
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group", [16, 24, 32, 96, 128, 256, 1000])
def test_groups_of_every_size(bits: int, group: int, int8_rows: bool) -> None:
    """Also those that no step fits, and a last one that is shorter."""
    for form in ("squared", "minima", "zeros"):
        matrix, bias = packed_matrices.of_form(form, 70, 560, bits, group), numbers(2, 70)
        rows = numbers(3, HEIGHTS[-1] + 1, 560)
        check(all_bits(pack(matrix, bias, int8_rows), rows), matrix, rows, bias, int8_rows)


def test_a_layer_of_several_matrices() -> None:
    """Of any kinds, with outputs that end anywhere."""
    parts = [made(kind, size, 200)[0] for kind, size in (("mixed", 70), ("f32", 10), ("minima", 64), ("bf16", 130))]
    rows, bias = numbers(3, HEIGHTS[-1] + 1, 200), numbers(4, 274)
    panels = pack(parts, bias)
    weight = torch.cat([weights_of(part).to(torch.float32) for part in parts])
    check(all_bits(panels, rows), weight, rows, bias, False)
    assert torch.equal(unpacked(panels), weight)
    apart = torch_linear(parts, bias)
    torch.testing.assert_close(apart(rows), NativeLinear(panels, cpu.Context(1))(rows), atol=1e-4, rtol=1e-4)
    assert torch.equal(apart.columns([273, 0, 75]), weight[[273, 0, 75]])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_panels_hold_the_matrix(kind: str, shape: tuple[int, int]) -> None:
    """Unpacked, it is what was packed; single outputs can be looked up, as an embedding's rows are."""
    matrix, bias = made(kind, *shape)
    panels, weight = pack(matrix, bias), weights_of(matrix).to(torch.float32)
    assert torch.equal(unpacked(panels), weight)
    chosen = [shape[0] - 1, 0]
    linear = NativeLinear(panels, cpu.Context(1))
    assert torch.equal(linear.columns(chosen), weight[chosen])
    assert torch.equal(linear.columns(chosen[:1]), weight[chosen[:1]])
    assert torch.equal(torch_linear(matrix).columns(chosen), weight[chosen])
    assert linear.size_bytes == panels.size_bytes > 0


@pytest.mark.parametrize(
    "kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL"]
)
def test_panels_take_little_more_than_a_file(kind: str) -> None:
    """At most a twentieth."""
    known = ggml.KINDS[kind]
    data = np.zeros(256 * (1024 // known.inputs) * known.size_bytes, np.uint8)
    assert pack(ggml.read(data, kind, 256, 1024)).size_bytes <= 1.05 * data.size


def test_what_is_not_finite_stays_so() -> None:
    """NaN and infinity in a row come out of every kind, in that row only: nothing is rounded away."""
    rows = numbers(3, 3, 100)
    rows[1, 50] = float("nan")
    rows[2, 99] = float("inf")
    for kind, int8_rows in itertools.product(KINDS, (False, True)):
        for limit in instruction_sets():
            matrix, bias = made(kind, 200, 100)
            out = NativeLinear(pack(matrix, bias, int8_rows), cpu.Context(1, limit))(rows)[:, :200]
            assert out[0].isfinite().all()
            assert not out[1].isfinite().any()
            assert not out[2].isfinite().any()


def test_other_dtypes_are_refused() -> None:
    """There are no panels of fp16 or of fp64."""
    for dtype in (torch.float16, torch.float64):
        with pytest.raises(ValueError, match="no panels"):
            pack(torch.zeros(4, 4, dtype=dtype))
