"""Causal attention over a session's pages, row-exact: pages in order, a fixed width at a time."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from shoal.kv.pages import PAGE_TOKENS
from shoal.model.kernels.tiles import exp_, pad_rows, row_sum, softcap_, tree_sum

GROUP_PAGES = 32
"""Pages that are combined before they meet the running maximum; a fixed number, so that its place in the sum is fixed."""

GROUP_TOKENS = GROUP_PAGES * PAGE_TOKENS


class AttentionForm(NamedTuple):
    """What attention does beside the plain thing. `sinks` and `slopes` [heads] in fp32."""

    query_scale: float | None = None
    """What q · k is multiplied by; None: 1 / √dim."""

    window: int = 0
    """A row sees its own key and the window - 1 before it; 0: all."""

    softcap: float = 0.0
    """Scores become cap · tanh(score / cap) (arXiv:2408.00118); 0: as they are."""

    sinks: Tensor | None = None
    """A score per head that takes part in the sum but has no value (gpt-oss; arXiv:2309.17453)."""

    slopes: Tensor | None = None
    """ALiBi: slope times key position minus own position is added (arXiv:2108.12409)."""


PLAIN = AttentionForm()


class _Rows(NamedTuple):
    """Query heads that share a key head as rows of one matrix.

    query [kv_heads, rows, dim'], positions [rows, 1], slopes [kv_heads, rows, 1].
    """

    query: Tensor
    positions: Tensor
    slopes: Tensor | None


def paged_attention(
    query: Tensor, keys: Tensor, values: Tensor, positions: Tensor, tile: int, form: AttentionForm = PLAIN
) -> Tensor:
    """Attention of one session's rows over its pages.

    query [n, heads, dim]; keys, values [pages, kv_heads, PAGE_TOKENS, dim'] with dim' ≥ dim (zero beyond dim), in the
    order of their tokens, in any float dtype, holding the rows' own keys already; positions [n], best on the CPU. Returns
    [n, heads, dim] in fp32.

    A running maximum, sum and product per row (arXiv:2112.05682), where a key beyond a row's position or before its window is
    selected out: it adds exactly zero, so a row's result does not depend on how many pages its company needs.
    """
    n, heads, dim = query.shape
    kv_heads, width = keys.shape[1], keys.shape[3]
    keys, values = keys.to(torch.float32), values.to(torch.float32)
    group = heads // kv_heads
    scale = dim**-0.5 if form.query_scale is None else form.query_scale
    wide = (query * scale).view(n, kv_heads, group, dim).transpose(0, 1).reshape(kv_heads, n * group, dim)
    wide = torch.nn.functional.pad(wide, (0, width - dim, 0, -(n * group) % tile))
    row_positions = pad_rows(positions.repeat_interleave(group)[:, None], tile).to(query.device)
    rows = _Rows(wide, row_positions, _per_row(form.slopes, kv_heads, n, wide.shape[1]))
    first = max(0, int(positions.min()) - form.window + 1) // GROUP_TOKENS if form.window else 0
    maximum, total, product = _fold_groups(rows, keys, values, form, first * GROUP_PAGES)
    if form.sinks is not None:
        total, product = _sunk(_per_row(form.sinks, kv_heads, n, wide.shape[1]), maximum, total, product)
    result = (product / total)[:, : n * group, :dim]
    return result.view(kv_heads, n, group, dim).transpose(0, 1).reshape(n, heads, dim)


def _per_row(per_head: Tensor | None, kv_heads: int, n: int, count: int) -> Tensor | None:
    """A number per query head [heads] as one per row of the matrix, [kv_heads, count, 1]; rows that fill up have 0."""
    if per_head is None:
        return None
    group = per_head.shape[0] // kv_heads
    rows = per_head.view(kv_heads, 1, group).expand(kv_heads, n, group).reshape(kv_heads, n * group, 1)
    return torch.nn.functional.pad(rows, (0, 0, 0, count - n * group))


def _sunk(sinks: Tensor | None, maximum: Tensor, total: Tensor, product: Tensor) -> tuple[Tensor, Tensor]:
    """Sum and product once a score without a value has joined."""
    assert sinks is not None
    highest = torch.maximum(maximum, sinks)
    scales = exp_(_whole_vectors(torch.stack([maximum - highest, sinks - highest])))
    before, after = scales[0][..., :1], scales[1][..., :1]
    return total * before + after, product * before


def _fold_groups(
    rows: _Rows, keys: Tensor, values: Tensor, form: AttentionForm, first_page: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Running maximum, sum and product over groups of pages; [kv_heads, rows, 1], the same, [kv_heads, rows, dim'].

    Groups before `first_page` are out of every row's window: their share would be zero.
    """
    folded = None
    for first in range(first_page, keys.shape[0], GROUP_PAGES):
        pages = slice(first, first + GROUP_PAGES)
        more = _group(rows, keys[pages], values[pages], form, first * PAGE_TOKENS)
        folded = more if folded is None else _joined(folded, more)
    assert folded is not None, "a row's own key is in one of the pages"
    return folded


def _joined(
    folded: tuple[Tensor, Tensor, Tensor], more: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    maximum, total, product = folded
    highest = torch.maximum(maximum, more[0])
    finite = torch.where(highest == float("-inf"), 0.0, highest)
    scales = exp_(_whole_vectors(torch.stack([maximum - finite, more[0] - finite])))
    before, after = scales[0][..., :1], scales[1][..., :1]
    return highest, total * before + more[1] * after, product * before + more[2] * after


def _whole_vectors(numbers: Tensor) -> Tensor:
    """[..., 1] as the first column of a contiguous [..., 64]."""
    return numbers.expand(*numbers.shape[:-1], PAGE_TOKENS).contiguous()


def _group(
    rows: _Rows, keys: Tensor, values: Tensor, form: AttentionForm, first_token: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Maximum, sum and product of one group of pages, whose first key is at `first_token`."""
    pages, kv_heads, _, width = keys.shape
    count = rows.query.shape[1]
    spread = rows.query.expand(pages, kv_heads, count, width).reshape(pages * kv_heads, count, width)
    scores = torch.bmm(spread, keys.reshape(pages * kv_heads, PAGE_TOKENS, width).transpose(1, 2))
    scores = scores.view(pages, kv_heads, count, PAGE_TOKENS)
    if form.softcap:
        scores = softcap_(scores, form.softcap)
    at = torch.arange(first_token, first_token + pages * PAGE_TOKENS, device=keys.device).view(pages, 1, 1, PAGE_TOKENS)
    if rows.slopes is not None:
        scores = scores + rows.slopes * (at - rows.positions).to(torch.float32)
    visible = at <= rows.positions
    if form.window:
        visible = visible & (at > rows.positions - form.window)
    scores = torch.where(visible, scores, float("-inf"))
    maximum = scores.amax(dim=(0, 3), keepdim=True)
    # A row that sees nothing here has −∞ throughout; its differences must be −∞ and not NaN.
    finite = torch.where(maximum == float("-inf"), 0.0, maximum)
    weights = exp_((scores - finite).contiguous())
    total = tree_sum(row_sum(weights), 0)
    flat = weights.view(pages * kv_heads, count, PAGE_TOKENS)
    parts = torch.bmm(flat, values.reshape(pages * kv_heads, PAGE_TOKENS, width))
    return maximum[0], total, tree_sum(parts.view(pages, kv_heads, count, width), 0)
