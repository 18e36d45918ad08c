"""Turning heads by Hadamard matrices: what it computes, and that a head's bits are its own."""

from __future__ import annotations

from functools import reduce

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shoal.engine.proof import numbers
from shoal.kv.cache_storage import quantize
from shoal.kv.hadamard import turned, turning_size

SIZES = {64: 64, 80: 16, 96: 32, 128: 128, 48: 16, 10: 2, 1: 1, 33: 1, 576: 64, 512: 512}


def sylvester(size: int) -> Tensor:
    """The orthogonal matrix in fp64, as a product of Kronecker's."""
    two = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64) / 2**0.5
    return reduce(torch.kron, [two] * (size.bit_length() - 1), torch.ones(1, 1, dtype=torch.float64))


@pytest.mark.parametrize("head_dim", SIZES)
def test_a_head_is_multiplied_by_sylvesters_matrix(head_dim: int) -> None:
    """The largest power of two that divides the head, as often as it fits; to rounding."""
    size = turning_size(head_dim)
    assert size == SIZES[head_dim]
    heads = numbers(1, 5, 3, head_dim)
    matrix = torch.block_diag(*[sylvester(size)] * (head_dim // size))
    found = turned(heads, size)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.to(torch.float64), heads.to(torch.float64) @ matrix, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(turned(found, size), heads, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("head_dim", [33, 1])
def test_an_odd_head_stays_as_it_is(head_dim: int) -> None:
    """To the bit: there is nothing to turn it with."""
    heads = numbers(2, 4, 2, head_dim)
    assert turned(heads, turning_size(head_dim)) is heads


@settings(max_examples=60, deadline=None)
@given(
    head_dim=st.sampled_from([64, 80, 96, 128, 48, 33]) | st.integers(1, 300),
    rows=st.integers(1, 70),
    first=st.integers(0, 69),
    heads=st.integers(1, 4),
    threads=st.sampled_from([1, 2, 5]),
    seed=st.integers(0, 1000),
)
def test_any_heads_keep_their_products_and_their_bits(
    head_dim: int, rows: int, first: int, heads: int, threads: int, seed: int
) -> None:
    """Of any size: q · k is the same to rounding, and a head has the same bits alone, in company and with other threads."""
    size, before = turning_size(head_dim), torch.get_num_threads()
    query, keys = 3 * numbers(seed, rows, heads, head_dim), 5 * numbers(seed + 1, rows, heads, head_dim)
    scores = (query.double() * keys.double()).sum(-1)
    both = [turned(each, size) for each in (query, keys)]
    torch.testing.assert_close((both[0].double() * both[1].double()).sum(-1), scores, rtol=1e-5, atol=1e-4)
    here = slice(min(first, rows - 1), None)
    try:
        torch.set_num_threads(threads)
        assert torch.equal(turned(keys[here], size), both[1][here])
        assert torch.equal(turned(keys.transpose(0, 1).contiguous(), size).transpose(0, 1), both[1])
    finally:
        torch.set_num_threads(before)


def test_large_dimensions_cost_the_others_less() -> None:
    """Why keys are turned: with three numbers thirty times as large as the rest, four bits keep a fifth of the error."""
    keys = numbers(3, 500, 2, 64)
    keys[..., [3, 17, 40]] *= 30

    def error(keys: Tensor) -> float:
        codes, scales = quantize(keys, 7)
        return float((codes * scales[..., None] - keys).pow(2).mean())

    assert error(turned(keys, 64)) < 0.5 * error(keys)


def test_what_is_not_finite_stays_visible() -> None:
    """In each number that is turned together with it."""
    for wrong in (float("nan"), float("inf")):
        heads = torch.ones(1, 1, 80)
        heads[..., 20] = wrong
        found = turned(heads, 16)[0, 0]
        assert not torch.isfinite(found[16:32]).any()
        assert torch.isfinite(torch.cat([found[:16], found[32:]])).all()
