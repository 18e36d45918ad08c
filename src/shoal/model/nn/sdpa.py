"""Attention on a GPU: torch's scaled_dot_product_attention, and the package flash_attn where it is installed.

Nearer to what a GPU can do than `paged_attention`, and not row-exact: flash kernels (arXiv:2307.08691) divide the keys by
their number and by the shape of the batch (docs/decisions/0009-attention-on-devices.md).
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from shoal.model.nn.attention import PLAIN, AttentionForm, paged_attention

MAX_FLASH_DIM = 256
"""Widest head that flash_attn knows."""

FLASH_OPTIONS = ("softmax_scale", "causal", "window_size", "softcap", "alibi_slopes")
"""What flash_attn_func has to offer (since 2.6); an older one is as good as none."""

HALVES = (torch.float16, torch.bfloat16)

Flash = Callable[..., Tensor]


class Attention(Protocol):
    """Attention of one session's rows, which follow each other, over its pages; see `paged_attention`."""

    def __call__(
        self, query: Tensor, keys: Tensor, values: Tensor, positions: Tensor, tile: int, form: AttentionForm = PLAIN
    ) -> Tensor:
        """query [n, heads, dim] in fp32, keys and values [pages, kv_heads, PAGE_TOKENS, width] → [n, heads, dim] in fp32."""
        ...


class DeviceAttention:
    """Chooses for each call. The rule: `flash` (flash_attn_func) takes a cache of 16-bit floats and heads of at most
    MAX_FLASH_DIM, with windows, soft caps and ALiBi but without sinks; torch takes what has none of the four; all the rest goes
    through `paged_attention`.

    Queries are rounded to the dtype of the keys, and so are the weights that meet the values; sums are fp32.
    """

    def __init__(self, flash: Flash | None = None) -> None:
        self._flash = flash
        self.name = "sdpa" if flash is None else "flash"

    def takes(self, form: AttentionForm, dtype: torch.dtype, dim: int) -> bool:
        """Whether this form, over keys of this dtype and width, does not go through `paged_attention`."""
        return self._flash_takes(form, dtype, dim) or _plain(form)

    def __call__(
        self, query: Tensor, keys: Tensor, values: Tensor, positions: Tensor, tile: int, form: AttentionForm = PLAIN
    ) -> Tensor:
        """See `Attention`. `positions` on the CPU spare a wait for the device."""
        dtype, dim = keys.dtype, query.shape[2]
        if not self.takes(form, dtype, dim):
            return paged_attention(query, keys, values, positions, tile, form)
        tokens = int(positions[-1]) + 1
        keys, values = (_in_a_row(pages, tokens, dim) for pages in (keys, values))
        query = query.to(dtype)
        if self._flash is not None and self._flash_takes(form, dtype, dim):
            return _by_flash(self._flash, query, keys, values, form)
        if query.is_cuda and dtype in HALVES and query.shape[0] > 1:
            return _chunk(query, keys, values, form)
        return folded(query, keys, values, form)

    def _flash_takes(self, form: AttentionForm, dtype: torch.dtype, dim: int) -> bool:
        return self._flash is not None and dtype in HALVES and dim <= MAX_FLASH_DIM and form.sinks is None


def may_be_exact(attention: Attention, form: AttentionForm, dtype: torch.dtype, dim: int) -> bool:
    """Whether a proof of row-exactness can be believed. Kernels that divide the keys by their number may well agree at the
    few lengths that a proof tries."""
    return not (isinstance(attention, DeviceAttention) and attention.takes(form, dtype, dim))


def find_flash() -> Flash | None:
    """flash_attn_func of an installed flash_attn that has all of FLASH_OPTIONS."""
    try:
        found: Flash = importlib.import_module("flash_attn").flash_attn_func
    except (ImportError, AttributeError):
        return None
    return found if set(FLASH_OPTIONS) <= set(inspect.signature(found).parameters) else None


def _plain(form: AttentionForm) -> bool:
    return not form.window and not form.softcap and form.sinks is None and form.slopes is None


def _in_a_row(pages: Tensor, tokens: int, dim: int) -> Tensor:
    """Pages [pages, kv_heads, PAGE_TOKENS, width] as [kv_heads, tokens, dim]: a copy, since pages lie apart."""
    return pages[..., :dim].transpose(0, 1).flatten(1, 2)[:, :tokens]


def _by_flash(flash: Flash, query: Tensor, keys: Tensor, values: Tensor, form: AttentionForm) -> Tensor:
    """Its causal masks end at the lower right corner; a window is given as the keys to either side."""
    found = flash(
        query[None],
        keys.transpose(0, 1)[None],
        values.transpose(0, 1)[None],
        softmax_scale=form.query_scale,
        causal=True,
        window_size=(form.window - 1, 0) if form.window else (-1, -1),
        softcap=form.softcap,
        alibi_slopes=form.slopes,
    )
    return found[0].to(torch.float32)


def _chunk(query: Tensor, keys: Tensor, values: Tensor, form: AttentionForm) -> Tensor:
    """Several rows as flash kernels take them: query heads beside each other, the mask as a shape and not as a matrix."""
    from torch.nn.attention.bias import causal_lower_right  # loads torch's compiler: 76 MB and seconds, at every start

    found = F.scaled_dot_product_attention(
        query.transpose(0, 1)[None],
        keys[None],
        values[None],
        attn_mask=causal_lower_right(query.shape[0], keys.shape[1]),
        scale=form.query_scale,
        enable_gqa=query.shape[1] != keys.shape[0],
    )
    return found[0].transpose(0, 1).to(torch.float32)


def folded(query: Tensor, keys: Tensor, values: Tensor, form: AttentionForm = PLAIN) -> Tensor:
    """Query heads that share a key head as rows of it, so that keys need no copy per query head; one row needs no mask.

    query [n, heads, dim], keys and values [kv_heads, tokens, dim] of one dtype, the rows being the last of the tokens. Returns
    [n, heads, dim] in fp32.
    """
    n, heads, dim = query.shape
    kv_heads, tokens, _ = keys.shape
    group = heads // kv_heads
    rows = query.view(n, kv_heads, group, dim).transpose(0, 1).reshape(1, kv_heads, n * group, dim)
    mask = None
    if n > 1:
        at = torch.arange(tokens, device=query.device)
        mask = (at <= at[tokens - n :, None]).repeat_interleave(group, 0)
    found = F.scaled_dot_product_attention(rows, keys[None], values[None], attn_mask=mask, scale=form.query_scale)
    return found[0].view(kv_heads, n, group, dim).transpose(0, 1).reshape(n, heads, dim).to(torch.float32)
