"""How many rows of prefill go beside decoding ones: a pure policy that learns from measured steps.

Sarathi (arXiv:2308.16369) gives a prefill a fixed number of rows a step. What such a number costs those who decode depends
on the machine, the weights and the kernels; so it is time that is rationed here, and rows follow from it.

Every chunk of a prefill reads all keys before it, whatever its height: few rows at a time through all blocks would pay for that
again and again. So a chunk keeps a certain height, and goes through as many blocks in a step as there is time for.
"""

from __future__ import annotations

from math import ceil, inf

MAX_DECODE_SLOWDOWN = 1.35
"""A token of those who decode takes so many times what it takes without a prefill, on average; some take more."""

SLOWEST = 4.5
"""A prefill beside decoding takes at most so many times its time alone, even if steps must stretch more for that."""

WHOLE_ROWS = 64
"""Steps of at least so many rows of prefill alone say what a prefill takes alone."""

SLICED_ROWS = 32
"""Rows of a chunk that goes through the blocks in several steps: reading all keys costs a tenth of it then."""

LEAST_OF_ALONE = 0.25
"""A row beside others costs at least this share of its cost alone: what is measured as less is noise."""

WEIGHT = 0.2
"""Of a new measurement in the moving averages."""


class PrefillBudget:
    """Moving averages, in seconds: `decode_s` of a step without prefill, `held_s` that a step is held back for company,
    `alone_s` of a row in steps of prefill only, `beside_s` of one more row of prefill beside decoding rows."""

    def __init__(self) -> None:
        self.decode_s = 0.0
        self.held_s = 0.0
        self.alone_s = 0.0
        self.beside_s = 0.0

    def measured(self, decode_rows: int, prefill_rows: float, elapsed_s: float, held_s: float = 0.0) -> None:
        """A step of these rows took `elapsed_s`, and could have begun `held_s` before. Rows that went through a part of the
        blocks count as that part."""
        if decode_rows:
            self.held_s = _average(self.held_s, held_s)
        if not prefill_rows:
            self.decode_s = _average(self.decode_s, elapsed_s)
        elif not decode_rows:
            if prefill_rows >= WHOLE_ROWS:
                self.alone_s = _average(self.alone_s, elapsed_s / prefill_rows)
        elif self.decode_s:
            each_s = (elapsed_s - self.decode_s) / prefill_rows
            self.beside_s = _average(self.beside_s, max(each_s, LEAST_OF_ALONE * self.alone_s, 1e-9))

    def rows(self, most: int, depth: int = 1) -> int:
        """Rows of a chunk for steps that decode too, through `depth` blocks in all, from 1 to `most`; `most` while nothing is
        known."""
        wanted, least = (min(most, bound) for bound in self._bounds())
        rows = max(int(wanted), ceil(least))
        if rows < min(SLICED_ROWS, most) and depth > 1:
            rows = min(SLICED_ROWS, max(int(wanted * depth), ceil(least * depth)))
        return min(most, max(1, rows))

    def blocks(self, rows: int, depth: int) -> int:
        """Of `depth` blocks, how many a chunk of these rows goes through in such a step, at least 1."""
        wanted, least = (min(depth, bound * depth / rows) for bound in self._bounds())
        return max(1, int(wanted), ceil(least))

    def _bounds(self) -> tuple[float, float]:
        """Rows, through all blocks, that make a step as long as is wanted, and those that a prefill needs at least."""
        alone_s = self.alone_s or self.beside_s
        beside_s = self.beside_s or self.alone_s
        if not self.decode_s or not beside_s:
            return inf, inf
        wanted = (MAX_DECODE_SLOWDOWN - 1) * (self.decode_s + self.held_s) / beside_s
        # n rows in every wait + step must be 1/SLOWEST of what n rows alone would make of that time.
        spare_s = SLOWEST * alone_s - beside_s
        return wanted, (self.decode_s + self.held_s) / spare_s if spare_s > 0 else inf


def _average(before: float, value: float) -> float:
    return value if before == 0 else before + WEIGHT * (value - before)
