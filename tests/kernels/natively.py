"""What the tests of the compiled kernels share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from torch import Tensor

from shoal.engine.blocks import Blocks, TorchBlocks
from shoal.engine.native import NativeBlock, NativeBlocks
from shoal.engine.native_proof import canned
from shoal.engine.proof import numbers
from shoal.engine.runner import Runner
from shoal.kv.cache import KVCache
from shoal.model.kernels import cpu
from shoal.model.nn.block import Block, BlockConfig
from shoal.model.nn.block_weights import BlockWeights
from shoal.protocol.rows import Rows
from shoal.types import Span
from tests.support.tiny_models import fill_with_garbage

needs_kernels = pytest.mark.skipif(not cpu.available(), reason="the compiled kernels are not built here")

SPAN = Span(3, 5)
ROWS = 150


def instruction_sets() -> list[int]:
    """Those that this processor has kernels for."""
    return [limit for limit in (cpu.AVX2, cpu.AVX512) if cpu.available() and cpu.instruction_set(limit) == limit]


def contexts() -> Iterator[cpu.Context]:
    """Every instruction set, with one, two and five threads, and both ways to read ahead."""
    for limit in instruction_sets():
        for threads, non_temporal in ((1, False), (2, True), (5, None)):
            context = cpu.Context(threads, limit, non_temporal)
            yield context
            context.close()


def native_runner(
    config: BlockConfig, weights: Sequence[BlockWeights], context: cpu.Context, kv_dtype: str = "float32", **form: bool
) -> Runner:
    """A runner on the compiled kernels, over a cache full of garbage."""
    blocks = [NativeBlock(config, each, **form) for each in weights]
    return _runner(config, kv_dtype, lambda cache: NativeBlocks(config, SPAN.start, blocks, cache, context))


def torch_runner(config: BlockConfig, weights: Sequence[BlockWeights], kv_dtype: str = "float32") -> Runner:
    """The truth."""
    blocks = [Block(config, each) for each in weights]
    return _runner(config, kv_dtype, lambda cache: TorchBlocks(config, SPAN.start, blocks, cache, 4))


def _runner(config: BlockConfig, kv_dtype: str, make: Callable[[KVCache], Blocks]) -> Runner:
    cache = KVCache(config.cache_shape, 24, kv_dtype)
    fill_with_garbage(cache)
    return Runner(SPAN, make(cache), cache)


def in_one_go(runner: Runner, rows: Tensor) -> Tensor:
    """A session's rows in one step."""
    runner.open("whole", SPAN, rows.shape[0])
    return runner.step([Rows("whole", 0, rows)])[0]


def in_company(runner: Runner, rows: Tensor, cuts: Sequence[int]) -> Tensor:
    """The same rows in pieces, beside another session over a part of the span."""
    count = rows.shape[0]
    runner.open("pieces", SPAN, count)
    runner.open("other", Span(4, 5), count)
    at, outputs = 0, []
    for cut in (*cuts, count - sum(cuts)):
        other = numbers(77 + at, cut, rows.shape[1])
        batch = [Rows("other", at, other), Rows("pieces", at, rows[at : at + cut])]
        outputs.append(runner.step(batch)[1])
        at += cut
    runner.close("other")
    return torch.cat(outputs)


def parameters(config: BlockConfig, biases: bool = False) -> list[BlockWeights]:
    """Seeded weights for the span's blocks."""
    return [canned(config, seed, biases) for seed in range(len(SPAN))]
