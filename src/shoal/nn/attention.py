"""Causal attention over a session's pages, row-exact: pages in order, a fixed width at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from shoal.kernels.tiles import exp_, pad_rows, row_sum, tree_sum

PAGE_TOKENS = 64
"""Tokens of one page."""

GROUP_PAGES = 32
"""Pages that are combined before they meet the running maximum; a fixed number, so that its place in the sum is fixed."""


def paged_attention(query: Tensor, keys: Tensor, values: Tensor, positions: Tensor, tile: int) -> Tensor:
    """Attention of one session's rows over its pages.

    query [n, heads, dim]; keys, values [pages, kv_heads, PAGE_TOKENS, dim'] with dim' ≥ dim (zero beyond dim), in the
    order of their tokens, holding the rows' own keys already; positions [n]. Returns [n, heads, dim] in fp32.

    A running maximum, sum and product per row (arXiv:2112.05682), where a key beyond a row's position is selected out: it
    adds exactly zero, so a row's result does not depend on how many pages its company needs.
    """
    n, heads, dim = query.shape
    kv_heads, width = keys.shape[1], keys.shape[3]
    group = heads // kv_heads
    # The query heads that share a key head become rows of one matrix: [kv_heads, n · group, dim'].
    rows = (query * dim**-0.5).view(n, kv_heads, group, dim).transpose(0, 1).reshape(kv_heads, n * group, dim)
    rows = torch.nn.functional.pad(rows, (0, width - dim, 0, -(n * group) % tile))
    row_positions = pad_rows(positions.repeat_interleave(group)[:, None], tile)
    _, total, product = _fold_groups(rows, keys, values, row_positions)
    result = (product / total)[:, : n * group, :dim]
    return result.view(kv_heads, n, group, dim).transpose(0, 1).reshape(n, heads, dim)


def _fold_groups(rows: Tensor, keys: Tensor, values: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Running maximum, sum and product over groups of pages; [kv_heads, rows, 1], the same, [kv_heads, rows, dim']."""
    maximum, total, product = _group(rows, keys[:GROUP_PAGES], values[:GROUP_PAGES], positions, 0)
    for first in range(GROUP_PAGES, keys.shape[0], GROUP_PAGES):
        last = first + GROUP_PAGES
        more = _group(rows, keys[first:last], values[first:last], positions, first * PAGE_TOKENS)
        highest = torch.maximum(maximum, more[0])
        scales = exp_(_whole_vectors(torch.stack([maximum - highest, more[0] - highest])))
        before, after = scales[0][..., :1], scales[1][..., :1]
        total = total * before + more[1] * after
        product = product * before + more[2] * after
        maximum = highest
    return maximum, total, product


def _whole_vectors(numbers: Tensor) -> Tensor:
    """[..., 1] as the first column of a contiguous [..., 64]."""
    return numbers.expand(*numbers.shape[:-1], PAGE_TOKENS).contiguous()


def _group(
    rows: Tensor, keys: Tensor, values: Tensor, positions: Tensor, first_token: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Maximum, sum and product of one group of pages, whose first key is at `first_token`."""
    pages, kv_heads, _, width = keys.shape
    count = rows.shape[1]
    spread = rows.expand(pages, kv_heads, count, width).reshape(pages * kv_heads, count, width)
    scores = torch.bmm(spread, keys.reshape(pages * kv_heads, PAGE_TOKENS, width).transpose(1, 2))
    scores = scores.view(pages, kv_heads, count, PAGE_TOKENS)
    at = torch.arange(first_token, first_token + pages * PAGE_TOKENS, device=keys.device).view(pages, 1, 1, PAGE_TOKENS)
    visible = at <= positions
    scores = torch.where(visible, scores, float("-inf"))
    maximum = scores.amax(dim=(0, 3), keepdim=True)
    # A row that sees nothing here has −∞ throughout; its differences must be −∞ and not NaN.
    finite = torch.where(maximum == float("-inf"), 0.0, maximum)
    weights = exp_((scores - finite).contiguous())
    total = tree_sum(row_sum(weights), 0)
    flat = weights.view(pages * kv_heads, count, PAGE_TOKENS)
    parts = torch.bmm(flat, values.reshape(pages * kv_heads, PAGE_TOKENS, width))
    return maximum[0], total, tree_sum(parts.view(pages, kv_heads, count, width), 0)
