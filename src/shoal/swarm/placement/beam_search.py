"""Plans of a few moves in a small swarm, by beam search: everybody who sees the same records finds the same one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from shoal.swarm.placement.swarm_load import ServerLoad, Strengths, strengths
from shoal.types import PeerId, Span

PLAN_GAIN = 0.05
"""A plan of several moves in a small swarm is worth it if the weakest block becomes stronger by this share."""
PLAN_MOVES = 4
PLAN_WIDTH = 64
PLAN_STATES = 40_000
"""States that are looked at for each further move of a plan; with many choices the beam is narrower for it."""

Moves = tuple[tuple[int, int], ...]
"""(index of a server, index of its choice), one after another."""


def plan_moves(num_blocks: int, held: Sequence[ServerLoad]) -> tuple[tuple[PeerId, Span], ...]:
    """Up to PLAN_MOVES moves, one after another, after which the weakest block is stronger by PLAN_GAIN; () if none found.

    A beam search over all moves of servers that stay, ordered by the sorted strengths; every state on the way covers every
    block. Everybody who sees the same records finds the same plan, and after its first move finds the rest of it again.
    """
    movers = [holder for holder in held if holder.stays and holder.max_blocks]
    choices = [_choices(num_blocks, holder) for holder in movers]
    start = strengths(num_blocks, held)
    target = start.min() * (1 + PLAN_GAIN)
    best: Moves = ()
    beam_search: list[tuple[Strengths, Moves]] = [(start, ())]
    width = min(PLAN_WIDTH, max(1, PLAN_STATES // max(1, sum(len(spans) for spans, _ in choices))))
    for _ in range(PLAN_MOVES):
        beam_search = _widen(beam_search, movers, choices, width)
        if beam_search and beam_search[0][0].min() > target:
            best, target = beam_search[0][1], beam_search[0][0].min() * (1 + PLAN_GAIN)
    return tuple((movers[at].peer, choices[at][0][choice]) for at, choice in best)


def _choices(num_blocks: int, holder: ServerLoad) -> tuple[list[Span], Strengths]:
    """Where a server could be, and what each choice adds to the strengths: [choices, num_blocks]."""
    lengths = range(1, min(holder.max_blocks, num_blocks) + 1)
    spans = [Span(start, start + length) for length in lengths for start in range(num_blocks - length + 1)]
    blocks = np.arange(num_blocks)
    starts, stops = np.array([[span.start] for span in spans]), np.array([[span.stop] for span in spans])
    share = holder.block_rows_per_s / (stops - starts)
    return spans, np.where((starts <= blocks) & (blocks < stops), share, 0.0)


def _widen(
    beam_search: Sequence[tuple[Strengths, Moves]],
    movers: Sequence[ServerLoad],
    choices: Sequence[tuple[list[Span], Strengths]],
    width: int,
) -> list[tuple[Strengths, Moves]]:
    """The best states that one more move leads to, the best first."""
    states: list[Strengths] = []
    origins: list[tuple[int, int, int]] = []
    for parent, (strength, moves) in enumerate(beam_search):
        for at, mover in enumerate(movers):
            if all(at != moved for moved, _ in moves):
                rest = strength - choices[at][1][choices[at][0].index(mover.goal)]
                rest[np.abs(rest) < 1e-9 * mover.share] = 0.0
                if (rest > 0)[strength > 0].all():  # nobody may be missing while it loads
                    states.append(rest + choices[at][1])
                    origins.extend((parent, at, choice) for choice in range(len(choices[at][0])))
    if not states:
        return []
    reached = np.concatenate(states)
    ranks = np.round(np.sort(reached, axis=1), 9)
    chosen: list[tuple[Strengths, Moves]] = []
    seen: set[bytes] = set()
    for index in np.lexsort(ranks.T[::-1])[::-1]:
        key = reached[index].round(6).tobytes()
        if len(chosen) == width:
            break
        if key not in seen:
            seen.add(key)
            parent, at, choice = origins[index]
            chosen.append((reached[index], (*beam_search[parent][1], (at, choice))))
    return chosen
