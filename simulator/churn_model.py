"""Who comes, what they bring and how long they stay: the simulator's population.

Session lengths are Weibull with shape 0.5, heavy-tailed: many servers leave soon and most of those that are there at any time
stay long. That is what was measured for peers of Gnutella, BitTorrent and Kad, whose sessions were not exponential and fitted
by Weibull distributions of shapes below one (D. Stutzbach and R. Rejaie, "Understanding churn in peer-to-peer networks",
IMC 2006, pp. 189-202). The shape of 0.5, the mean of twelve hours (a machine that serves stays longer than one that
fetches a file) and what servers bring are assumptions; arrivals are Poisson.
"""

from __future__ import annotations

import math
import random

import msgspec

SHAPE = 0.5
CRASHES = 0.5
"""The share of servers that leave without a word."""


class ServerProfile(msgspec.Struct, frozen=True):
    """A server: its speed, memory and line, its place on a square of a world, how long it stays and how it leaves."""

    block_rows_per_s: float
    max_blocks: int
    download_bytes_per_s: float
    place: tuple[float, float]
    stays_s: float
    crashes: bool


class ChurnModel(msgspec.Struct, frozen=True):
    """Distributions: medians and spreads of log-normals, bounds of a log-uniform number of blocks."""

    mean_session_s: float = 12 * 3600.0
    rows: tuple[float, float] = (2000.0, 0.6)
    blocks: tuple[int, int] = (4, 20)
    download: tuple[float, float] = (25e6, 0.8)

    @property
    def mean_blocks(self) -> float:
        """Blocks that a server has memory for, on average."""
        low, high = self.blocks
        return (high - low) / math.log(high / low)

    def newcomer(self, rng: random.Random, present: bool = False) -> ServerProfile:
        """A server that comes now; with `present` one of those that are there at any moment, and what is left of its stay."""
        scale = self.mean_session_s / math.gamma(1 + 1 / SHAPE)
        if present:  # a moment falls into a session as often as it is long, and anywhere within it
            stays_s = scale * rng.gammavariate(1 + 1 / SHAPE, 1.0) ** (1 / SHAPE) * rng.random()
        else:
            stays_s = rng.weibullvariate(scale, SHAPE)
        low, high = self.blocks
        return ServerProfile(
            block_rows_per_s=_log_normal(rng, self.rows),
            max_blocks=round(math.exp(rng.uniform(math.log(low), math.log(high)))),
            download_bytes_per_s=_log_normal(rng, self.download),
            place=(rng.random(), rng.random()),
            stays_s=stays_s,
            crashes=rng.random() < CRASHES,
        )


def _log_normal(rng: random.Random, of: tuple[float, float]) -> float:
    median, spread = of
    return median * math.exp(rng.gauss(0, spread))
