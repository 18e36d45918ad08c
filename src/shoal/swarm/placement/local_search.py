"""Better places for several servers at once: large-neighbourhood search (P. Shaw, CP 1998) over the spans of a swarm.

A few servers are taken out and put back one by one, each where it helps most, and what came out better is kept. Moves, and
seconds of fetching, cost shares of the soft minimum. A plan is one that can be carried out: move after move, each block that is
served stays served.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from shoal.swarm.directory.records import MAX_PLANNED
from shoal.swarm.placement.swarm_load import POWER, BlockLoad, Floats, ServerLoad, SwarmLoad, soft_minimum_gain, weaken
from shoal.types import PeerId, Span

MOVE_COST = 0.004
"""The share by which the soft minimum has to grow for each server that moves, since it serves nothing while it loads."""
FETCH_COST_PER_S = 1e-4
"""The same for each second that it fetches before: meanwhile servers leave, and the plan is another one."""
MAX_COST = 4.0
TRIALS = 400
AT_ONCE = 3
"""Servers that are taken out at a time, at most."""
LEAST_GAIN = 1e-9
ROUNDING = 1e-13
"""Sums of weaknesses that differ by no more than this share are equal: the shortest span, then the first, is taken."""


def plan_moves(swarm: SwarmLoad, trials: int = TRIALS) -> dict[PeerId, Span]:
    """Where servers should go, at most MAX_PLANNED of them; deterministic. A server may keep the goal that a plan gave it."""
    search = _Search(swarm)
    search.improve(trials)
    return {one.peer: one.span for one in search.movable if one.span != one.home}


def best_move(swarm: SwarmLoad, server: ServerLoad) -> tuple[Span, float]:
    """Where one server helps most, if it moves alone, and by what factor the soft minimum grows; costs do not count."""
    blocks, scale = swarm.settled.copy(), swarm.settled.scale
    before = blocks.weakness(scale)
    if not server.joining:
        blocks.add(server.goal, server.block_rows_per_s, -1)
    candidate = _Candidate(swarm.num_blocks, server, costs=False)
    return candidate.span_put(blocks, scale), soft_minimum_gain(before, blocks.weakness(scale))


def choose_span(swarm: SwarmLoad, max_blocks: int, block_rows_per_s: float | None = None, fewest: int = 1) -> Span:
    """Where a joining server with memory for `max_blocks` helps most, if it takes at least `fewest`.

    A server that has not measured its rate (None) counts as the median of the others.
    """
    block_rows_per_s = block_rows_per_s or swarm.usual_rate
    blocks = swarm.blocks.copy()
    scale = blocks.scale + block_rows_per_s / swarm.num_blocks
    nowhere = Span(0, 1)
    load = ServerLoad(PeerId(""), nowhere, nowhere, False, block_rows_per_s, max_blocks)
    candidate = _Candidate(swarm.num_blocks, load, costs=False)
    candidate.factors[: min(fewest, len(candidate.factors)) - 1] = np.inf
    return candidate.span_put(blocks, scale)


class _Candidate:
    """A server that may be put anywhere. `factors` [lengths, starts]: by what a move to a span multiplies the weakness."""

    def __init__(self, num_blocks: int, server: ServerLoad, costs: bool = True) -> None:
        assert server.serves is not None
        self.peer, self.home, self.span = server.peer, server.serves, server.goal
        self.block_rows_per_s = server.block_rows_per_s
        self.windows = _windows(num_blocks, min(server.max_blocks, num_blocks))
        self.shares = server.block_rows_per_s / self.windows.lengths
        self.factors = self._factors(num_blocks, server) if costs else self.windows.inside.copy()

    def _factors(self, num_blocks: int, server: ServerLoad) -> Floats:
        missing = np.ones(num_blocks + 1)
        for span in (*server.on_disk, self.home):
            missing[span.start + 1 : span.stop + 1] = 0.0
        missing[0] = 0.0
        to_fetch = np.cumsum(missing)
        seconds = server.fetch_s * (to_fetch[self.windows.stops] - to_fetch[self.windows.starts])
        costs = MOVE_COST + np.minimum(FETCH_COST_PER_S * seconds, MAX_COST)
        for span, cost in ((self.span, costs[len(self.span) - 1, self.span.start] - MOVE_COST), (self.home, 0.0)):
            costs[len(span) - 1, span.start] = cost  # a move that is planned already costs no more than its fetching
        factors: Floats = np.exp(POWER * costs) * self.windows.inside
        return factors

    @property
    def factor(self) -> float:
        """What its move costs."""
        return float(self.factors[len(self.span) - 1, self.span.start])

    def back_to(self, span: Span) -> None:
        """It was not better elsewhere."""
        self.span = span

    def span_put(self, blocks: BlockLoad, scale: float) -> Span:
        """Add it to the blocks where it helps most for its costs: its span then."""
        windows, n = self.windows, len(blocks.holders)
        with_and_without = np.empty((len(self.shares) + 1, n))
        blocks.trusted(0.0, 0, with_and_without[0])
        blocks.trusted(self.shares, 1, with_and_without[1:])
        weak = weaken(with_and_without, scale)
        sums = np.zeros((len(weak), n + 1))
        weak.cumsum(axis=1, out=sums[:, 1:])
        after = np.zeros(n + 1)
        weak[0, ::-1].cumsum(out=after[n - 1 :: -1])
        weakness = sums[1:].take(windows.high)
        weakness -= sums[1:].take(windows.low)
        weakness += sums[
            0, :n
        ]  # before a window, and after it: differences would drown in the weakness of missing blocks
        weakness += after.take(windows.stops)
        weakness *= self.factors
        length, start = divmod(int((weakness <= weakness.min() * (1 + ROUNDING)).argmax()), n)
        self.span = Span(start, start + length + 1)
        blocks.add(self.span, self.block_rows_per_s)
        return self.span


class _Windows(NamedTuple):
    """All spans of up to some length, [lengths, starts]: where they begin and end, also in flat cumulative sums."""

    lengths: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    stops: npt.NDArray[np.int64]
    low: npt.NDArray[np.int64]
    high: npt.NDArray[np.int64]
    inside: Floats


@lru_cache(64)
def _windows(num_blocks: int, longest: int) -> _Windows:
    lengths, starts = np.arange(1, longest + 1)[:, None], np.arange(num_blocks)[None, :]
    row = (lengths - 1) * (num_blocks + 1)
    stops = np.minimum(starts + lengths, num_blocks)
    inside = np.where(starts + lengths > num_blocks, np.inf, 1.0)
    return _Windows(lengths, starts, stops, row + starts, row + stops, inside)


class _Search:
    """A state of the swarm that becomes better."""

    def __init__(self, swarm: SwarmLoad) -> None:
        self.blocks = swarm.settled.copy()
        self.committed = swarm.committed
        self.scale = self.blocks.scale
        there = sorted(swarm.servers.values(), key=lambda one: one.peer)
        self.movable = [_Candidate(swarm.num_blocks, one) for one in there if one.committed and one.max_blocks]

    def improve(self, trials: int) -> None:
        """Take servers out and put them back, again and again; the same for the same servers."""
        rng = random.Random(0)
        weakness = self.blocks.weakness(self.scale)
        for trial in range(trials):
            count = min(1 + trial % AT_ONCE, len(self.movable))
            weakness = self._try(rng.sample(self.movable, count), weakness)

    def _try(self, chosen: Sequence[_Candidate], weakness: float) -> float:
        """Other places for these, if the weakness times what their moves cost becomes less: the weakness then."""
        before, spans = self.blocks, [one.span for one in chosen]
        self.blocks = before.copy()
        cost = math.prod(one.factor for one in chosen)
        for one in chosen:
            self.blocks.add(one.span, one.block_rows_per_s, -1)
        for one in chosen:
            one.span_put(self.blocks, self.scale)
        after = self.blocks.weakness(self.scale)
        gained = after * math.prod(one.factor for one in chosen) < weakness * cost * (1 - LEAST_GAIN)
        if gained and self._possible():
            return after
        self.blocks = before
        for one, span in zip(chosen, spans, strict=True):
            one.back_to(span)
        return weakness

    def _possible(self) -> bool:
        """Whether there are few enough moves, and an order in which each leaves no block without a server."""
        left = [one for one in self.movable if one.span != one.home]
        if len(left) > MAX_PLANNED:
            return False
        committed = self.committed.copy()
        while left:
            free = [one for one in left if (committed[one.home.start : one.home.stop] >= 2).all()]
            if not free:
                return False
            one = free[0]
            left.remove(one)
            committed[one.home.start : one.home.stop] -= 1
            committed[one.span.start : one.span.stop] += 1
        return True
