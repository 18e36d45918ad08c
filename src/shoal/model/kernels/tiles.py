"""Row-exact arithmetic in plain torch: a row's bits do not depend on its company, its chunk or the thread count.

Three habits give that, each measured in docs/decisions/0003-row-exact-torch.md: matrices get a multiple of `tile` rows and
a multiple of 64 columns; transcendentals run on contiguous buffers in slabs that torch neither splits between threads nor ends
inside a vector; and sums run along rows or in a fixed tree. `engine.proof` checks the habits on the model's own shapes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LANES = 64
"""Widths are padded to a multiple of this: whole vectors on every processor, whole panels in every BLAS tried."""

SLAB = 16_384
"""Elements of one transcendental call: no more than torch leaves to one thread (32,768 for most, 16,384 for GELU)."""


def padded(size: int, multiple: int = LANES) -> int:
    """The least multiple that holds `size`."""
    return -(-size // multiple) * multiple


def pad_rows(rows: Tensor, tile: int) -> Tensor:
    """Rows [n, width] with zero rows up to a multiple of `tile`."""
    missing = -rows.shape[0] % tile
    return F.pad(rows, (0, 0, 0, missing)) if missing else rows


def _slabs(buffer: Tensor) -> tuple[Tensor, ...]:
    if not buffer.is_contiguous() or buffer.numel() % LANES:
        raise ValueError(f"a buffer of shape {list(buffer.shape)} is not whole vectors of {LANES}")
    if buffer.device.type != "cpu":  # no threads share a buffer there, and each slab would be a launch
        return (buffer.view(-1),)
    return torch.split(buffer.view(-1), SLAB)


def exp_(buffer: Tensor) -> Tensor:
    """eˣ in place on a contiguous buffer of whole vectors."""
    for slab in _slabs(buffer):
        slab.exp_()
    return buffer


def silu_(buffer: Tensor) -> Tensor:
    """x · σ(x) in place on a contiguous buffer of whole vectors (SwiGLU's gate, arXiv:2002.05202)."""
    for slab in _slabs(buffer):
        F.silu(slab, inplace=True)
    return buffer


def gelu_tanh_(buffer: Tensor) -> Tensor:
    """The tanh form of GELU in place on a contiguous buffer of whole vectors (arXiv:1606.08415)."""
    for slab in _slabs(buffer):
        slab.copy_(F.gelu(slab, approximate="tanh"))
    return buffer


def gelu_(buffer: Tensor) -> Tensor:
    """GELU by the error function in place on a contiguous buffer of whole vectors (arXiv:1606.08415)."""
    for slab in _slabs(buffer):
        slab.copy_(F.gelu(slab))
    return buffer


def sigmoid_(buffer: Tensor) -> Tensor:
    """σ(x) in place on a contiguous buffer of whole vectors."""
    for slab in _slabs(buffer):
        slab.sigmoid_()
    return buffer


def quick_gelu_(buffer: Tensor) -> Tensor:
    """x · σ(1.702 x) in place on a contiguous buffer of whole vectors."""
    return buffer.mul_(sigmoid_(buffer * 1.702))


def softcap_(buffer: Tensor, cap: float) -> Tensor:
    """cap · tanh(x / cap) in place on a contiguous buffer of whole vectors (Gemma 2, arXiv:2408.00118)."""
    buffer.div_(cap)
    for slab in _slabs(buffer):
        slab.tanh_()
    return buffer.mul_(cap)


def tree_sum(terms: Tensor, dim: int) -> Tensor:
    """The sum along a dimension as a tree of neighbours, (0+1)+(2+3)…; zeros beyond the end do not change its bits.

    Uses elementwise additions only, so that neither the other dimensions nor threads matter. Returns the tensor without `dim`.
    """
    terms = terms.movedim(dim, 0)
    while terms.shape[0] > 1:
        if terms.shape[0] % 2:
            terms = torch.cat([terms, terms.new_zeros(1, *terms.shape[1:])])
        terms = terms[0::2] + terms[1::2]
    return terms[0] + 0.0  # −0 becomes +0 also where nothing was added


def row_sum(terms: Tensor) -> Tensor:
    """The sum along the last, contiguous dimension; returns [..., 1].

    torch reduces each such row by the same inner loop whatever the other dimensions and the threads are (measured at
    widths from 33 to 16,384, and proven again at start-up).
    """
    return terms.sum(dim=-1, keepdim=True)
