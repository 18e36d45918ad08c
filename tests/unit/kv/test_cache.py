"""The KV cache's tensors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from shoal.engine.proof import numbers
from shoal.kv.cache import KVCache
from shoal.kv.cache_storage import FLOATS, KV_DTYPES, read_dtype
from shoal.kv.pages import PAGE_TOKENS
from shoal.model.nn.block import BlockConfig
from shoal.model.nn.rope import RopeConfig
from shoal.types import Span
from tests.support.tiny_models import fill_with_garbage

CONFIG = BlockConfig(40, 4, 2, 10, 64, 1e-5, RopeConfig())
SPAN = Span(2, 4)


def filled(cache: KVCache, session: str, count: int) -> tuple[Tensor, Tensor]:
    """Open a session and write `count` tokens to its two blocks; returns block 2's keys and values."""
    keys, values = numbers(1, count, 2, 10), numbers(2, count, 2, 10)
    cache.open(session, SPAN, 200)
    cache.grow(session, count)
    cache.write(session, 2, 0, keys, values)
    cache.write(session, 3, 0, values, keys)
    return keys, values


def tokens_of(pages: Tensor) -> Tensor:
    """[pages, kv_heads, PAGE_TOKENS, dim'] → [tokens, kv_heads, dim']."""
    return pages.transpose(1, 2).reshape(-1, pages.shape[1], pages.shape[3])


@pytest.mark.parametrize("chunks", [[150], [1] * 70 + [80], [63, 2, 85], [64, 64, 22]])
def test_what_is_written_is_read_in_order(chunks: list[int]) -> None:
    """However it was cut, and zero where nothing was written or a head is padded, in a cache that was full of garbage."""
    cache = KVCache(CONFIG.cache_shape, 20)
    fill_with_garbage(cache)
    keys, values, position = numbers(1, 150, 2, 10), numbers(2, 150, 2, 10), 0
    cache.open("one", SPAN, 150)
    for count in chunks:
        cache.grow("one", position + count)
        here = slice(position, position + count)
        cache.write("one", 3, position, keys[here], values[here])
        position += count
    for expected, pages in zip((keys, values), cache.read("one", 3), strict=True):
        assert pages.shape == (3, 2, PAGE_TOKENS, 64)
        assert torch.equal(tokens_of(pages)[:150, :, :10], expected)
        assert not tokens_of(pages)[150:].any()
        assert not pages[..., 10:].any()


def test_sessions_and_blocks_do_not_touch_each_other() -> None:
    """Pages in between belong to somebody else, and stay as they are."""
    cache = KVCache(CONFIG.cache_shape, 40)
    keys, values = filled(cache, "one", 70)
    filled(cache, "two", 130)
    cache.grow("one", 140)
    cache.write("one", 2, 70, numbers(5, 70, 2, 10), numbers(6, 70, 2, 10))
    cache.close("two")
    cache.close("two")
    read = cache.read("one", 2)
    assert torch.equal(tokens_of(read[0])[:70, :, :10], keys)
    assert torch.equal(tokens_of(read[1])[:70, :, :10], values)
    assert torch.equal(tokens_of(cache.read("one", 3)[0])[:70, :, :10], values)


@pytest.mark.parametrize("dtype", KV_DTYPES)
@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 70, 128])
def test_truncating_zeroes_the_rest_of_the_page(count: int, dtype: str) -> None:
    """What was before is kept, what was after is gone, in keys and values."""
    cache = KVCache(CONFIG.cache_shape, 40, dtype)
    filled(cache, "one", 130)
    before = [tokens_of(part).clone() for part in cache.read("one", 2)]
    cache.truncate("one", count)
    cache.grow("one", 130)
    for kept, part in zip(before, cache.read("one", 2), strict=True):
        assert torch.equal(tokens_of(part)[:count], kept[:count])
        assert not tokens_of(part)[count:].any()


@pytest.mark.parametrize("count", [70, 71, 100, 128, 130, 1000])
def test_truncating_beyond_the_end_changes_nothing(count: int) -> None:
    """A rewind to rows that were queued but never computed leaves the cache alone."""
    cache = KVCache(CONFIG.cache_shape, 40)
    keys, _ = filled(cache, "one", 70)
    cache.truncate("one", count)
    assert cache.pages["one"].num_tokens == 70
    assert torch.equal(tokens_of(cache.read("one", 2)[0])[:70, :, :10], keys)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_values_are_rounded_once_and_read_as_they_are(dtype: str) -> None:
    """The cache holds its dtype's nearest value; only integers become fp32."""
    cache = KVCache(CONFIG.cache_shape, 20, dtype)
    keys, _ = filled(cache, "one", 5)
    read = tokens_of(cache.read("one", 2)[0])[:5, :, :10]
    assert read.dtype == read_dtype(dtype)
    assert torch.equal(read, keys.to(read.dtype))


@pytest.mark.parametrize(
    ("dtype", "form"),
    [("float32", "float32"), ("float16", "float16"), ("int8", "int8-turned"), ("int4", "int4-turned")],
)
def test_a_cache_says_how_it_keeps_numbers(dtype: str, form: str) -> None:
    """Turned keys have other bits than codes of keys as they were, which older servers keep; floats have the same."""
    cache = KVCache(CONFIG.cache_shape, 2, dtype)
    assert cache.form == form
    query = numbers(3, 5, 4, 10)
    assert torch.equal(cache.turned(query), query) == (dtype in FLOATS)
