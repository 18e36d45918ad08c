"""What the simulator counts, weighted by time."""

from __future__ import annotations

import statistics
from collections.abc import Iterable

import msgspec
import numpy as np

from shoal.types import Span


class Report(msgspec.Struct, frozen=True):
    """What came of a simulation.

    `coverage` is the share of time that a block was served: of the worst block, and the mean. `weakest_share` is the weakest
    block's throughput over the time, divided by that of `bound`: at each instant the best that no placement of the servers that
    have joined can exceed (`level_bound`). `history` holds (hours, weakest, median, bound, servers).
    """

    hours: float
    servers: float
    serving_per_block: float
    coverage_worst: float
    coverage_mean: float
    weakest_rows_per_s: float
    bound_rows_per_s: float
    weakest_share: float
    moves: int
    moves_per_server_hour: float
    route_s: float
    route_hops: float
    history: tuple[tuple[float, float, float, float, int], ...]


def level_bound(num_blocks: int, powers: Iterable[tuple[float, int]]) -> float:
    """A strength, rows/s, that no placement of these servers gives to all blocks: (block·rows/s, blocks that fit) of each.

    To lift all blocks to a level, a server gives each of its blocks no more than that, and has memory for so many. So the
    level is at most where the sum of min(rate, blocks · level) is what all blocks together need.
    """
    listed = list(powers)
    if not listed:
        return 0.0
    rates, most = np.array([rate for rate, _ in listed]), np.array([float(blocks) for _, blocks in listed])
    low, high = 0.0, float(rates.sum()) / num_blocks
    for _ in range(40):
        level = (low + high) / 2
        enough = float(np.minimum(rates, most * level).sum()) >= num_blocks * level
        low, high = (level, high) if enough else (low, level)
    return high


class SimMetrics:
    """Strengths of blocks as they really are, and their integrals over time; each change first accounts for what was before."""

    def __init__(self, num_blocks: int) -> None:
        self.holders = np.zeros(num_blocks, np.int64)
        self.moves = 0
        self._strength = np.zeros(num_blocks)
        self._covered_s = np.zeros(num_blocks)
        self._sums = dict.fromkeys(("weakest", "bound", "servers", "held"), 0.0)
        self._live = 0
        self._powers: list[tuple[float, int]] = []
        self._bound = 0.0
        self._until = 0.0
        self._history: list[tuple[float, float, float, float, int]] = []

    def advance(self, now: float) -> None:
        """Account for the time up to now."""
        elapsed = now - self._until
        if elapsed > 0:
            self._covered_s += elapsed * (self.holders > 0)
            self._sums["weakest"] += elapsed * self._weakest()
            self._sums["bound"] += elapsed * self._bound
            self._sums["servers"] += elapsed * self._live
            self._sums["held"] += elapsed * float(self.holders.mean())
            self._until = now

    def serve(self, now: float, span: Span, block_rows_per_s: float, sign: int) -> None:
        """A server begins (1) or stops (-1) to serve a span."""
        self.advance(now)
        blocks = slice(span.start, span.stop)
        self.holders[blocks] += sign
        self._strength[blocks] += sign * block_rows_per_s / len(span)

    def population(self, now: float, change: int) -> None:
        """A server came or left."""
        self.advance(now)
        self._live += change

    def join(self, now: float, block_rows_per_s: float, max_blocks: int) -> None:
        """A server serves for the first time: from now on the bound counts on it."""
        self.advance(now)
        self._powers.append((block_rows_per_s, max_blocks))
        self._bound = level_bound(len(self.holders), self._powers)

    def part(self, now: float, block_rows_per_s: float, max_blocks: int) -> None:
        """A server that has joined is gone."""
        self.advance(now)
        self._powers.remove((block_rows_per_s, max_blocks))
        self._bound = level_bound(len(self.holders), self._powers)

    def covered(self) -> bool:
        """Whether each block has a server now."""
        return bool(self.holders.all())

    def sample(self, now: float) -> None:
        """Note the state for the picture."""
        median = float(np.median(self._strength))
        self._history.append((now / 3600, self._weakest(), median, self._bound, self._live))

    def _weakest(self) -> float:
        return float(np.where(self.holders > 0, self._strength, 0).min())

    def report(self, hours: float, routes: list[tuple[float, int]]) -> Report:
        """The whole run."""
        total_s = hours * 3600
        coverage = self._covered_s / total_s
        mean = {name: value / total_s for name, value in self._sums.items()}
        return Report(
            hours=hours,
            servers=mean["servers"],
            serving_per_block=mean["held"],
            coverage_worst=float(coverage.min()),
            coverage_mean=float(coverage.mean()),
            weakest_rows_per_s=mean["weakest"],
            bound_rows_per_s=mean["bound"],
            weakest_share=mean["weakest"] / mean["bound"] if mean["bound"] else 0.0,
            moves=self.moves,
            moves_per_server_hour=self.moves / max(mean["servers"] * hours, 1e-9),
            route_s=statistics.median(time_s for time_s, _ in routes) if routes else 0.0,
            route_hops=statistics.median(hops for _, hops in routes) if routes else 0.0,
            history=tuple(self._history),
        )
