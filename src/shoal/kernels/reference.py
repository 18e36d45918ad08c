"""What the row-exact and the compiled kernels must compute, in the plainest torch. Slow, and not row-exact."""

from __future__ import annotations

import torch
from torch import Tensor


def linear(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [n, in], W [out, in], b [out] → x Wᵀ + b [n, out]."""
    product = rows @ weight.T
    return product if bias is None else product + bias


def rms_norm(rows: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [n, width] → x / √(mean(x²) + ε) · w (arXiv:1910.07467)."""
    return rows * torch.rsqrt(rows.pow(2).mean(-1, keepdim=True) + eps) * weight


def rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x [n, heads, dim] by angles [n, dim/2], halves as pairs (arXiv:2104.09864, Llama's layout)."""
    first, second = heads.chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def attention(query: Tensor, keys: Tensor, values: Tensor, start: int) -> Tensor:
    """Causal attention of q [n, heads, dim] at positions start… over k, v [tokens, kv_heads, dim] → [n, heads, dim]."""
    group = query.shape[1] // keys.shape[1]
    keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
    scores = torch.einsum("nhd,thd->hnt", query, keys) * query.shape[-1] ** -0.5
    visible = torch.arange(keys.shape[0]) <= torch.arange(start, start + query.shape[0])[:, None]
    weights = scores.masked_fill(~visible, float("-inf")).softmax(-1)
    return torch.einsum("hnt,thd->nhd", weights, values)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """σ(g) · g · u (arXiv:2002.05202)."""
    return torch.nn.functional.silu(gate) * up
