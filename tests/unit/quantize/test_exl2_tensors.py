"""What is written is what is read, bit for bit: by this project's reader and by one written from the description alone."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.model.quant import exl2
from shoal.quantize.exl2_tensors import exl2_tensors
from shoal.quantize.hessian import factored
from shoal.quantize.rounding import RoundedMatrix, round_matrix
from shoal.quantize.row_groups import WIDTHS, Groups, MatrixShape, RowGroup, stored_bits
from tests.support.quantized_files import exl2_weights
from tests.unit.quantize.test_hessian import hessian

KEY = "model.layers.0.mlp.up_proj"


@st.composite
def written_groups(draw: st.DrawFn) -> Groups:
    """Falling widths in groups of 32, 64 or 128, the last one shorter."""
    widths = sorted(draw(st.lists(st.sampled_from(WIDTHS), min_size=1, max_size=4)), reverse=True)
    size = draw(st.sampled_from((32, 64, 128)))
    groups = [RowGroup(bits, size) for bits in widths]
    return (*groups, RowGroup(draw(st.sampled_from([bits for bits in WIDTHS if bits <= widths[-1]])), 32))


def rounded(groups: Groups, outputs: int, seed: int, size: float) -> RoundedMatrix:
    """A random matrix in these groups."""
    inputs = sum(group.inputs for group in groups)
    weight = size * torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(seed))
    return round_matrix(weight, factored(hessian(inputs, 64, seed)), groups)


@settings(max_examples=40, deadline=None)
@given(written_groups(), st.integers(1, 70), st.integers(0, 1000), st.sampled_from((2e-6, 0.0005, 0.02, 20.0)))
def test_both_readers_agree(groups: Groups, outputs: int, seed: int, size: float) -> None:
    """All widths and group sizes, odd numbers of outputs, a short last group, units that are subnormal."""
    matrix = rounded(groups, outputs, seed, size)
    tensors = {name: tensor.numpy() for name, tensor in exl2_tensors(KEY, matrix).items()}
    independent = exl2_weights(tensors, KEY)
    assert independent.shape[1] % 32 == 0
    assert not independent[:, outputs:].any()
    read = exl2.dequantize(tensors, KEY, outputs)
    assert np.array_equal(read.view(np.uint16) & 0x7FFF, independent[:, :outputs].view(np.uint16) & 0x7FFF)
    assert np.array_equal(read, independent[:, :outputs])
    assert np.array_equal(read.T.astype(np.float32), matrix.dequantized().numpy())


@settings(max_examples=30, deadline=None)
@given(written_groups(), st.integers(1, 70), st.integers(0, 1000))
def test_the_size_in_bits_is_that_of_the_tensors(groups: Groups, outputs: int, seed: int) -> None:
    """`stored_bits` counts what lies in the file; the two numbers of a group, 16 bits each, count as they do there."""
    matrix = rounded(groups, outputs, seed, 0.02)
    tensors = exl2_tensors(KEY, matrix)
    assert [tensor.dtype for tensor in tensors.values()] == [
        torch.int32,
        torch.int16,
        torch.int32,
        torch.float16,
        torch.int32,
    ]
    shape = MatrixShape(sum(group.inputs for group in groups), outputs)
    assert stored_bits(groups, shape) == 8 * sum(tensor.nbytes for tensor in tensors.values())
