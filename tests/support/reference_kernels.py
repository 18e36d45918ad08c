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


def attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    start: int,
    window: int = 0,
    softcap: float = 0.0,
    sinks: Tensor | None = None,
    slopes: Tensor | None = None,
) -> Tensor:
    """Causal attention of q [n, heads, dim] at positions start… over k, v [tokens, kv_heads, dim] → [n, heads, dim].

    What else there may be is described in `nn.attention.AttentionForm`; sinks and slopes [heads].
    """
    group = query.shape[1] // keys.shape[1]
    keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
    scores = torch.einsum("nhd,thd->hnt", query, keys) * query.shape[-1] ** -0.5
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    ahead = torch.arange(keys.shape[0]) - torch.arange(start, start + query.shape[0])[:, None]
    if slopes is not None:
        scores = scores + slopes[:, None, None] * ahead
    visible = (ahead <= 0) & (ahead > -window) if window else ahead <= 0
    scores = scores.masked_fill(~visible, float("-inf"))
    if sinks is not None:
        scores = torch.cat([scores, sinks[:, None, None].expand(-1, query.shape[0], 1)], dim=-1)
    weights = scores.softmax(-1)[..., : keys.shape[0]]
    return torch.einsum("hnt,thd->nhd", weights, values)


def layer_norm(rows: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """x [n, width] → (x − mean) / √(variance + ε) · w + b (arXiv:1607.06450)."""
    return torch.nn.functional.layer_norm(rows, (rows.shape[-1],), weight, bias, eps)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """σ(g) · g · u (arXiv:2002.05202)."""
    return torch.nn.functional.silu(gate) * up
