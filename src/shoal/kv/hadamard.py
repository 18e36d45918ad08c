"""Turning heads by a Hadamard matrix: a few large numbers are spread over all of a head, which then has none.

The matrix is Sylvester's, normalised, and so orthogonal: q · k stays what it was when both are turned. A turned head loses less
when it is rounded to codes with one scale (QuaRot, arXiv:2404.00456).
"""

from __future__ import annotations

import math

from torch import Tensor, stack

UNTURNED = 1
"""The size of the matrix that changes nothing."""


def turning_size(head_dim: int) -> int:
    """The largest power of two that divides `head_dim`: so many numbers of a head after each other are turned together."""
    return head_dim & -head_dim


def turned(heads: Tensor, size: int) -> Tensor:
    """Heads [..., head_dim] in fp32, each `size` numbers after each other times the matrix [size, size], new or as they are.

    By halves of halves: each pair a, b becomes a + b, a − b, and all of it is multiplied once. Elementwise operations in a
    fixed order, so that a head's bits depend on that head alone. The compiled kernels do the same (native/src/hadamard.h).
    """
    if size == UNTURNED:
        return heads
    shape, half = heads.shape, size // 2
    while half:
        first, second = heads.reshape(*shape[:-1], -1, 2, half).unbind(-2)
        heads, half = stack([first + second, first - second], -2), half // 2
    return heads.reshape(shape) * (1 / math.sqrt(size))
