"""The compiled kernels turn keys and queries as torch does, to the bit, for heads of any size."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shoal.engine.native import NativeBlock, NativeBlocks
from shoal.engine.native_proof import canned
from shoal.engine.proof import numbers
from shoal.engine.runner import Runner
from shoal.kv.cache import KVCache
from shoal.kv.hadamard import UNTURNED, turned, turning_size
from shoal.model.kernels import cpu
from shoal.model.nn.block import BlockConfig
from shoal.model.nn.rope import RopeConfig
from tests.kernels.natively import (
    ROWS,
    SPAN,
    contexts,
    in_company,
    in_one_go,
    native_runner,
    needs_kernels,
    parameters,
    torch_runner,
)

pytestmark = needs_kernels

HEAD_SIZES = (64, 80, 96, 128, 48, 33, 2, 4, 8, 24, 10, 256)
CUTS = (1, 2, 5, 30, 7, 1, 20)


def config_of(head_dim: int) -> BlockConfig:
    """A small block with heads of this size; odd ones turn in part."""
    return BlockConfig(40, 4, 2, head_dim, 64, 1e-5, RopeConfig(), rotary_dim=head_dim // 2 * 2)


def keys_of(config: BlockConfig, context: cpu.Context, turning: int) -> tuple[Tensor, Tensor]:
    """Keys [tokens, kv_heads, head_dim] that the kernels write in floats, turned so, and the rows that came out."""
    cache = KVCache(config.cache_shape, 24)
    cache.storage.turning = turning
    blocks = [NativeBlock(config, canned(config, seed)) for seed in range(len(SPAN))]
    runner = Runner(SPAN, NativeBlocks(config, SPAN.start, blocks, cache, context), cache)
    outputs = in_one_go(runner, numbers(5, ROWS, config.hidden_size))
    pages = cache.read("whole", SPAN.start)[0]
    return pages.transpose(1, 2).flatten(0, 1)[:ROWS, :, : config.head_dim], outputs


@pytest.fixture(params=HEAD_SIZES, scope="module")
def config(request: pytest.FixtureRequest) -> Iterator[BlockConfig]:
    """A block for each size of head."""
    return config_of(request.param)


def test_the_kernels_turn_as_torch_does(config: BlockConfig) -> None:
    """Kept as floats, turned keys are torch's of the same keys, bit for bit; scores, and so the rows, are as before."""
    size = turning_size(config.head_dim)
    for context in contexts():
        keys, outputs = keys_of(config, context, UNTURNED)
        found, turned_outputs = keys_of(config, context, size)
        assert torch.equal(found, turned(keys, size))
        assert (turned_outputs - outputs).norm() < 1e-5 * outputs.norm()


@pytest.mark.parametrize("kv_dtype", ["int8", "int4"])
def test_a_quantized_cache_is_torchs(config: BlockConfig, kv_dtype: str) -> None:
    """Codes and scales but where rounding tips a code over, and rows near to torch's, which are near to those of floats."""
    weights, rows = parameters(config), numbers(5, ROWS, config.hidden_size)
    truth, bits = torch_runner(config, weights, kv_dtype), None
    expected, whole = in_one_go(truth, rows), in_one_go(torch_runner(config, weights), rows)
    for context in contexts():
        runner = native_runner(config, weights, context, kv_dtype)
        found = in_one_go(runner, rows)
        bits = found if bits is None else bits
        assert torch.equal(found, bits)
        assert torch.equal(in_company(runner, rows, CUTS), bits)
        for mine, true in zip(runner.cache.read("whole", 3), truth.cache.read("whole", 3), strict=True):
            assert torch.isclose(mine, true, rtol=1e-3, atol=1e-3).float().mean() > 0.999
    assert bits is not None
    assert (bits - expected).norm() < 0.01 * expected.norm()
    assert (bits - whole).norm() < {"int8": 0.02, "int4": 0.2}[kv_dtype] * whole.norm()


@settings(max_examples=25, deadline=None)
@given(
    head_dim=st.integers(1, 40) | st.sampled_from([48, 64, 80, 96, 128, 144]),
    cuts=st.lists(st.sampled_from([1, 1, 2, 3, 7, 16, 17, 64]), max_size=6),
    kv_dtype=st.sampled_from(["int8", "int4"]),
    threads=st.sampled_from([1, 2, 3]),
    limit=st.sampled_from([cpu.AVX2, cpu.AVX512]),
)
def test_rows_are_exact_for_heads_of_any_size(
    head_dim: int, cuts: list[int], kv_dtype: str, threads: int, limit: int
) -> None:
    """However they are cut and in whose company they come."""
    config, kept = config_of(head_dim), list[int]()
    for cut in cuts:
        if sum(kept) + cut < ROWS:
            kept.append(cut)
    context = cpu.Context(threads, limit)
    runner = native_runner(config, parameters(config), context, kv_dtype)
    rows = numbers(6, ROWS, config.hidden_size)
    assert torch.equal(in_company(runner, rows, kept), in_one_go(runner, rows))
    context.close()
