"""Bits for each layer under one budget: the multiple-choice knapsack, solved to a stated gap.

Each layer takes one of its options, which cost bits and leave an error. The sum of the errors is to be the least among all
choices within the budget.
"""

from __future__ import annotations

import bisect
import heapq
import itertools
from collections.abc import Sequence
from typing import NamedTuple

GAP = 1e-3
"""The search ends when the error found is so near the least that there can be, as a share of it."""

MAX_STATES = 100_000
"""Partial choices that are looked at in one layer's turn; beyond it the best found so far is taken."""


class Choice(NamedTuple):
    """What an option costs and the error that it leaves."""

    bits: int
    error: float


class Allocation(NamedTuple):
    """The option of each layer by its index; their bits and errors in all; `bound`: no choice within the budget has less."""

    chosen: tuple[int, ...]
    bits: int
    error: float
    bound: float


class _Step(NamedTuple):
    """From one corner of a layer's lower hull to the next."""

    gain_per_bit: float
    layer: int
    option: int
    bits: int
    gain: float


class _Layer(NamedTuple):
    """A layer's useful options by rising bits, as (bits, error, index), and its steps along their lower hull."""

    kept: list[tuple[int, float, int]]
    steps: list[_Step]


def allocate(layers: Sequence[Sequence[Choice]], budget_bits: int) -> Allocation | None:
    """The choice with the least error within the budget, to within `GAP`; None where even the cheapest does not fit."""
    prepared = [_prepared(index, options) for index, options in enumerate(layers)]
    if sum(layer.kept[0][0] for layer in prepared) > budget_bits:
        return None
    found = _greedy(prepared, budget_bits)
    if found.error - found.bound > GAP * found.error:
        found = _searched(prepared, budget_bits, found)
    return found


def _prepared(index: int, options: Sequence[Choice]) -> _Layer:
    kept = list[tuple[int, float, int]]()
    for number in sorted(range(len(options)), key=lambda one: (options[one].bits, options[one].error)):
        if not kept or options[number].error < kept[-1][1]:
            kept.append((options[number].bits, options[number].error, number))
    corners = list[tuple[int, float, int]]()
    for one in kept:
        while len(corners) > 1 and _slope(corners[-2], one) >= _slope(corners[-2], corners[-1]):
            corners.pop()
        corners.append(one)
    pairs = itertools.pairwise(corners)
    return _Layer(kept, [_Step(_slope(a, b), index, b[2], b[0] - a[0], a[1] - b[1]) for a, b in pairs])


def _slope(one: tuple[int, float, int], other: tuple[int, float, int]) -> float:
    """What each bit from one option to the other takes off the error."""
    return (one[1] - other[1]) / (other[0] - one[0])


def _greedy(layers: Sequence[_Layer], budget_bits: int) -> Allocation:
    """Steps by falling gain for each bit. The first that does not fit gives the bound; those after it that fit are taken."""
    chosen = [layer.kept[0][2] for layer in layers]
    bits, error = sum(layer.kept[0][0] for layer in layers), sum(layer.kept[0][1] for layer in layers)
    bound: float | None = None
    waiting = [(-layer.steps[0].gain_per_bit, index, 0) for index, layer in enumerate(layers) if layer.steps]
    heapq.heapify(waiting)
    while waiting:
        _, index, number = heapq.heappop(waiting)
        step = layers[index].steps[number]
        if bits + step.bits > budget_bits:
            if bound is None:
                bound = error - step.gain_per_bit * (budget_bits - bits)
            continue
        chosen[index], bits, error = step.option, bits + step.bits, error - step.gain
        if number + 1 < len(layers[index].steps):
            heapq.heappush(waiting, (-layers[index].steps[number + 1].gain_per_bit, index, number + 1))
    return Allocation(tuple(chosen), bits, error, error if bound is None else min(bound, error))


class _Bounds:
    """For the layers from one on: the least error that they can have in so many bits, if options could be mixed."""

    def __init__(self, layers: Sequence[_Layer]) -> None:
        steps = sorted((step for layer in layers for step in layer.steps), key=lambda step: -step.gain_per_bit)
        self.least_bits = sum(layer.kept[0][0] for layer in layers)
        self._bits, self._gains = [0], [0.0]
        self._rates = [step.gain_per_bit for step in steps]
        for step in steps:
            self._bits.append(self._bits[-1] + step.bits)
            self._gains.append(self._gains[-1] + step.gain)
        self._error = sum(layer.kept[0][1] for layer in layers)

    def least(self, bits: int) -> float:
        """For a budget that the cheapest options fit in."""
        at = bisect.bisect_right(self._bits, bits - self.least_bits) - 1
        part = self._rates[at] * (bits - self.least_bits - self._bits[at]) if at < len(self._rates) else 0.0
        return self._error - self._gains[at] - part


def _searched(layers: Sequence[_Layer], budget_bits: int, found: Allocation) -> Allocation:
    """Layer after layer, every partial choice that is neither dominated nor, by its bound, hopeless."""
    bounds = [_Bounds(layers[first:]) for first in range(len(layers) + 1)]
    states: list[tuple[int, float, tuple[int, ...]]] = [(0, 0.0, ())]
    for index, layer in enumerate(layers):
        rest = bounds[index + 1]
        goal = found.error * (1 - GAP / 2)
        more = [
            (bits + cost, error + loss, (*path, option))
            for bits, error, path in states
            for cost, loss, option in layer.kept
            if bits + cost + rest.least_bits <= budget_bits
            and error + loss + rest.least(budget_bits - bits - cost) < goal
        ]
        states = _undominated(more)
        if not states:  # nothing can be better than what was found by more than half of the gap
            return found._replace(bound=max(found.bound, goal))
        if len(states) > MAX_STATES:
            return found
    bits, error, path = min(states, key=lambda state: state[1])
    return Allocation(path, bits, error, error)


def _undominated(states: list[tuple[int, float, tuple[int, ...]]]) -> list[tuple[int, float, tuple[int, ...]]]:
    kept = list[tuple[int, float, tuple[int, ...]]]()
    for state in sorted(states, key=lambda one: (one[0], one[1])):
        if not kept or state[1] < kept[-1][1]:
            kept.append(state)
    return kept
