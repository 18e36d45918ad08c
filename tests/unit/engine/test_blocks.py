"""Blocks in plain torch: ragged batches over any of the span's blocks."""

from __future__ import annotations

import pytest
import torch

from shoal.engine.blocks import TorchBlocks
from shoal.engine.proof import numbers
from shoal.kv.cache import KVCache
from shoal.model.nn.block import BlockConfig
from shoal.model.nn.rope import RopeConfig
from shoal.protocol.rows import Rows
from shoal.types import Span
from tests.support.tiny_models import random_blocks

CONFIG = BlockConfig(40, 4, 2, 10, 64, 1e-5, RopeConfig())
SPAN = Span(3, 6)
INPUTS = numbers(1, 30, 40)


@pytest.fixture
def cache() -> KVCache:
    """Room for three sessions, two of which hold a few tokens already."""
    cache = KVCache(CONFIG.cache_shape, 18)
    for session in "abc":
        cache.open(session, SPAN, 60)
        cache.grow(session, 30)
    return cache


@pytest.fixture
def blocks(cache: KVCache) -> TorchBlocks:
    """Three blocks over that cache."""
    return TorchBlocks(CONFIG, SPAN.start, random_blocks(CONFIG, 3), cache, tile=4)


def test_each_entry_has_its_own_outputs(blocks: TorchBlocks) -> None:
    """In company they are what they are alone, whatever the heights, and nothing of the inputs changes."""
    with torch.inference_mode():
        given = INPUTS.clone()
        (alone,) = blocks.run(range(3), [Rows("a", 0, given)])
        first, second = blocks.run(range(3), [Rows("b", 0, given[:7]), Rows("c", 0, given[:1])])
        rest, more = blocks.run(range(3), [Rows("c", 1, given[1:30]), Rows("b", 7, given[7:8])])
    assert torch.equal(given, INPUTS)
    assert torch.equal(torch.cat([first, more]), alone[:8])
    assert torch.equal(torch.cat([second, rest]), alone)


def test_blocks_one_after_the_other_are_all_of_them(blocks: TorchBlocks) -> None:
    """A range names blocks from the span's first on."""
    with torch.inference_mode():
        (whole,) = blocks.run(range(3), [Rows("a", 0, INPUTS)])
        (hidden,) = blocks.run(range(1), [Rows("b", 0, INPUTS)])
        (hidden,) = blocks.run(range(1, 3), [Rows("b", 0, hidden)])
    assert torch.equal(hidden, whole)
    assert (len(blocks), blocks.hidden_size, blocks.any_thread) == (3, 40, False)
