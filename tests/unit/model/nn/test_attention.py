"""Attention over pages: who sees whom. That it is the reference's, to rounding, is in tests/kernels/test_tiles.py."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from shoal.engine.proof import numbers
from shoal.kv.pages import PAGE_TOKENS
from shoal.model.nn.attention import GROUP_PAGES, AttentionForm, paged_attention

HEADS, KV_HEADS, DIM, TILE = 4, 2, 16, 4


def cache(pages: int) -> tuple[Tensor, Tensor]:
    """Keys and values [pages, kv_heads, PAGE_TOKENS, dim] of as many tokens."""
    keys, values = (numbers(seed, pages, KV_HEADS, PAGE_TOKENS, DIM) for seed in (1, 2))
    return keys, values


def query(count: int) -> Tensor:
    """Rows [n, heads, dim]."""
    return numbers(3, count, HEADS, DIM)


def test_a_row_that_sees_itself_alone_gets_its_value() -> None:
    """At position 0, and anywhere with a window of one token: of the key head that its head shares."""
    keys, values = cache(2)
    first = paged_attention(query(1), keys, values, torch.tensor([0]), TILE)
    last = paged_attention(query(1), keys, values, torch.tensor([100]), TILE, AttentionForm(window=1))
    for found, (page, slot) in ((first, (0, 0)), (last, (1, 100 - PAGE_TOKENS))):
        assert torch.equal(found[0], values[page, :, slot].repeat_interleave(HEADS // KV_HEADS, 0))


def test_what_lies_ahead_changes_nothing() -> None:
    """Keys of later positions and pages that company needs: the same bits."""
    keys, values = cache(3)
    rows, at = query(5), torch.arange(60, 65)
    expected = paged_attention(rows, keys[:2], values[:2], at, TILE)
    keys[1, :, 1:], values[1, :, 1:] = 9.0, -9.0
    keys[2], values[2] = 9.0, 9.0
    assert torch.equal(paged_attention(rows, keys, values, at, TILE), expected)


@pytest.mark.parametrize("before", [GROUP_PAGES - 1, GROUP_PAGES, GROUP_PAGES + 1])
def test_what_lies_before_a_window_changes_nothing(before: int) -> None:
    """Also where whole groups of pages are left out."""
    keys, values = cache(before + 2)
    at = torch.tensor([(before + 1) * PAGE_TOKENS + 3])
    form = AttentionForm(window=10)
    expected = paged_attention(query(1), keys, values, at, TILE, form)
    keys[:before], values[:before] = 5.0, 5.0
    assert torch.equal(paged_attention(query(1), keys, values, at, TILE, form), expected)


def test_a_sink_takes_its_share_and_gives_nothing() -> None:
    """One with a score that is far higher leaves zero, one that is far lower leaves all."""
    keys, values = cache(1)
    at = torch.tensor([20])
    plain = paged_attention(query(1), keys, values, at, TILE)
    sunk = paged_attention(query(1), keys, values, at, TILE, AttentionForm(sinks=torch.tensor([1e4, -1e4] * 2)))
    assert not sunk[0, 0::2].any()
    torch.testing.assert_close(sunk[0, 1::2], plain[0, 1::2])


def test_scores_are_scaled_as_the_form_says() -> None:
    """1 / √dim unless it says otherwise; with 0 all keys count alike."""
    keys, values = cache(1)
    at = torch.tensor([9])
    plain = paged_attention(query(1), keys, values, at, TILE)
    assert torch.equal(paged_attention(query(1), keys, values, at, TILE, AttentionForm(query_scale=DIM**-0.5)), plain)
    alike = paged_attention(query(1), keys, values, at, TILE, AttentionForm(query_scale=0.0))
    expected = values[0, :, :10].mean(1).repeat_interleave(HEADS // KV_HEADS, 0)
    torch.testing.assert_close(alike[0], expected)
