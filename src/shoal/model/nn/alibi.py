"""ALiBi's slopes (arXiv:2108.12409)."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def alibi_slopes(num_heads: int) -> Tensor:
    """A slope for each head [heads] in fp32: powers of 2^(−8/n), where n is the next lower power of two, then those between."""
    count = 2 ** math.floor(math.log2(num_heads))
    base = 2.0 ** -(8 / count)
    slopes = [base**power for power in range(1, count + 1)]
    between = 2.0 ** -(4 / count)
    slopes += [between**power for power in range(1, 2 * (num_heads - count), 2)]
    return torch.tensor(slopes, dtype=torch.float32)
