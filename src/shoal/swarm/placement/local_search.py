"""Better places for several servers at once: large-neighbourhood search (P. Shaw, CP 1998) over a swarm's spans.

A few servers are taken out and put back one by one, each where it helps most, and what came out better is kept. What is made
small is the *weakness*: the sum over blocks of strength to the power of -16, so that the weakest count most and ties still
count. Moves, and seconds of fetching, cost shares of the strength: a plan that is not worth its trouble is no plan.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from shoal.swarm.placement.swarm_load import Counts, ServerLoad, Strengths
from shoal.types import PeerId, Span

SQUARINGS = 4
POWER = 2.0**SQUARINGS
LONELY = 0.6
"""What the strength of a block is worth that a single server holds: nobody could go on without it."""
WEAKEST_SHARE = 0.15
"""Strengths below this share of the mean count as this, so that a missing block is bad but finite."""
MOVE_COST = 0.004
"""The share by which the weakest blocks have to gain for each server that moves, since it serves nobody while it loads."""
FETCH_COST_PER_S = 1e-4
"""The same for each second that it fetches before: meanwhile somebody leaves, and the plan is another one."""
MAX_COST = 4.0
MOST_MOVES = 12
TRIALS = 400
AT_ONCE = 3
"""Servers that are taken out at a time, at most."""
LEAST_GAIN = 1e-9

Floats = npt.NDArray[np.float64]


def plan_together(num_blocks: int, held: Sequence[ServerLoad], trials: int = TRIALS) -> dict[PeerId, Span]:
    """Where servers should go, at most MOST_MOVES of them. Who is planned to move may keep its goal."""
    search = LocalSearch(num_blocks, held)
    movers = [_Mover(num_blocks, holder) for holder in held if holder.stays and holder.max_blocks]
    search.improve(movers, trials)
    return {mover.peer: mover.span for mover in movers if mover.span != mover.home}


def best_place(num_blocks: int, others: Sequence[ServerLoad], newcomer: ServerLoad) -> tuple[Span, float]:
    """Where one more server helps most, wherever its own record has it, and the `softest` then; fetching does not count."""
    search = LocalSearch(num_blocks, others)
    span, weakness = search.place(newcomer)
    return span, search.strength_of(weakness)


def softest(num_blocks: int, held: Sequence[ServerLoad]) -> float:
    """About the weakest block's strength, rows/s, with every server at its goal: the soft minimum that plans make large."""
    search = LocalSearch(num_blocks, held)
    return search.strength_of(search.weakness())


class LocalSearch:
    """A state of the swarm that becomes better. `strength`, `holders` [num_blocks] are of the present state."""

    def __init__(self, num_blocks: int, held: Sequence[ServerLoad]) -> None:
        self.strength: Strengths = np.zeros(num_blocks)
        self.holders: Counts = np.zeros(num_blocks, np.int64)
        for holder in held:
            self.strength[holder.goal.start : holder.goal.stop] += holder.share
            self.holders[holder.goal.start : holder.goal.stop] += 1
        self._moved = 0
        self.scale = max(float(sum(holder.block_rows_per_s for holder in held)) / num_blocks, 1e-12)
        self._trust = np.array([0.0, LONELY, *[1.0] * (len(held) + 1)]) / self.scale

    def weakness(self) -> float:
        """Of the present state, without costs."""
        return float(_weakness(self.strength * self._trust[self.holders]).sum())

    def improve(self, movers: Sequence[_Mover], trials: int) -> None:
        """Take servers out and put them back, again and again; the same for the same servers."""
        rng = random.Random(0)
        weakness = self.weakness()
        self._moved = sum(mover.span != mover.home for mover in movers)
        for trial in range(trials):
            count = min(1 + trial % AT_ONCE, len(movers))
            weakness = self._try(rng.sample(movers, count), weakness)

    def place(self, newcomer: ServerLoad) -> tuple[Span, float]:
        """Add a server where it helps most; the span and the weakness then."""
        mover = _Mover(len(self.strength), newcomer)
        mover.factors = mover.windows.inside
        weakness = self._put(mover)
        return mover.span, weakness

    def strength_of(self, weakness: float) -> float:
        """The strength, rows/s, that all blocks would have if they were equal and together as weak as this."""
        return float((weakness / len(self.strength)) ** (-1 / POWER)) * self.scale

    def _try(self, chosen: list[_Mover], weakness: float) -> float:
        """Other places for these, if the weakness times what their moves cost becomes less: the weakness then."""
        before = self.strength, self.holders, [mover.span for mover in chosen]
        self.strength, self.holders = self.strength.copy(), self.holders.copy()
        cost, moved = _cost(chosen)
        for mover in chosen:
            self._add(mover, -1)
        after = weakness
        for mover in chosen:
            after = self._put(mover)
        cost_after, moved_after = _cost(chosen)
        moved_after += self._moved - moved
        if after * cost_after < weakness * cost * (1 - LEAST_GAIN) and moved_after <= MOST_MOVES:
            self._moved = moved_after
            return after
        self.strength, self.holders, spans = before
        for mover, span in zip(chosen, spans, strict=True):
            mover.span = span
        return weakness

    def _put(self, mover: _Mover) -> float:
        """Add a server where it helps most for its costs; the weakness then."""
        windows = mover.windows
        before = _weakness(self.strength * self._trust[self.holders])
        change = _weakness((self.strength + mover.shares) * self._trust[self.holders + 1])
        change -= before
        sums = np.zeros((len(change), len(before) + 1))
        np.cumsum(change, axis=1, out=sums[:, 1:])
        weakness = sums.take(windows.high)
        weakness -= sums.take(windows.low)
        weakness += before.sum()
        length, start = divmod(int((weakness * mover.factors).argmin()), len(before))
        mover.span = Span(start, start + length + 1)
        self._add(mover, 1)
        return float(weakness[length, start])

    def _add(self, mover: _Mover, sign: int) -> None:
        blocks = _slice(mover.span)
        self.holders[blocks] += sign
        self.strength[blocks] += sign * mover.block_rows_per_s / len(mover.span)
        if sign < 0:  # rounding leaves crumbs: where nobody is, there is nothing
            self.strength[blocks] = np.where(self.holders[blocks] > 0, np.maximum(self.strength[blocks], 0), 0.0)


class _Mover:
    """A server that a plan may move. `factors` [lengths, starts]: by what a move to a span multiplies the weakness."""

    def __init__(self, num_blocks: int, holder: ServerLoad) -> None:
        assert holder.serves is not None
        self.peer, self.home, self.span = holder.peer, holder.serves, holder.goal
        self.block_rows_per_s = holder.block_rows_per_s
        self.windows = _windows(num_blocks, min(holder.max_blocks, num_blocks))
        self.shares = holder.block_rows_per_s / self.windows.lengths
        self.factors = self._factors(num_blocks, holder)

    def _factors(self, num_blocks: int, holder: ServerLoad) -> Floats:
        missing = np.ones(num_blocks + 1)
        for span in (*holder.on_disk, self.home):
            missing[span.start + 1 : span.stop + 1] = 0.0
        missing[0] = 0.0
        to_fetch = np.cumsum(missing)
        seconds = holder.fetch_s * (to_fetch[self.windows.stops] - to_fetch[self.windows.starts])
        costs = MOVE_COST + np.minimum(FETCH_COST_PER_S * seconds, MAX_COST)
        for span, cost in ((self.span, costs[len(self.span) - 1, self.span.start] - MOVE_COST), (self.home, 0.0)):
            costs[len(span) - 1, span.start] = cost  # a move that is planned already costs no more than its fetching
        factors: Floats = np.exp(POWER * costs) * self.windows.inside
        return factors

    @property
    def factor(self) -> float:
        """What its move costs."""
        return float(self.factors[len(self.span) - 1, self.span.start])


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


def _cost(movers: Sequence[_Mover]) -> tuple[float, int]:
    """By what these servers' moves multiply the weakness, and how many they are."""
    return math.prod(mover.factor for mover in movers), sum(mover.span != mover.home for mover in movers)


def _weakness(relative: Floats) -> Floats:
    weakness = np.maximum(relative, WEAKEST_SHARE)
    np.reciprocal(weakness, out=weakness)
    for _ in range(SQUARINGS):
        np.multiply(weakness, weakness, out=weakness)
    return weakness


def _slice(span: Span) -> slice:
    return slice(span.start, span.stop)
