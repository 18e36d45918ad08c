"""The exact optimum that placement is compared with."""

from __future__ import annotations

import itertools
import random

import pytest

from bench.placement import best_weakest


def brute_force(num_blocks: int, powers: tuple[tuple[float, int], ...]) -> float:
    """All placements."""
    choices = [
        [(rate / n, range(a, a + n)) for n in range(1, min(most, num_blocks) + 1) for a in range(num_blocks - n + 1)]
        for rate, most in powers
    ]
    return max(
        min(sum(share for share, blocks in placed if block in blocks) for block in range(num_blocks))
        for placed in itertools.product(*choices)
    )


@pytest.mark.parametrize("seed", range(15))
def test_the_optimum_is_exact(seed: int) -> None:
    """Equal to trying everything."""
    rng = random.Random(seed)
    num_blocks = rng.randint(2, 5)
    powers = tuple((rng.uniform(1, 8), rng.randint(1, num_blocks)) for _ in range(rng.randint(2, 4)))
    assert best_weakest(num_blocks, powers) == pytest.approx(brute_force(num_blocks, powers))
