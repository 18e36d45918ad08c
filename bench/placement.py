"""`python -m bench placement`: servers that come one by one and then move by the rule, against the exact optimum."""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Iterable
from typing import Any

import msgspec

from bench.report import report
from shoal.swarm.placement.block_inventory import BlockInventory
from shoal.swarm.placement.local_search import choose_span
from shoal.swarm.placement.rebalancer import (
    GOSSIP_S,
    REST_S,
    Action,
    Announce,
    Ask,
    Decision,
    Move,
    Publish,
    Rebalancer,
    Withdraw,
)
from shoal.swarm.placement.swarm_load import ServerLoad, SwarmLoad
from shoal.types import PeerId

SIZES = ((6, 6), (6, 8), (8, 8), (10, 10))
"""(servers, blocks)."""
INSTANCES = 10
"""Of each size."""
Powers = tuple[tuple[float, int], ...]
"""(block·rows/s, blocks that fit into the memory) of each server."""


def run(tokens: int) -> dict[str, Any]:
    """The weakest block's throughput against the exact optimum, mean over instances; `tokens` is not used."""
    del tokens
    started_at = time.perf_counter()
    results = [
        _instance(random.Random(f"{servers} {blocks} {seed}"), servers, blocks)
        for servers, blocks in SIZES
        for seed in range(INSTANCES)
    ]
    after = [result["after"] for result in results]
    return report(
        "placement",
        "of the optimum",
        statistics.mean(after),
        "exact offline optimum",
        1.0,
        worst=min(after),
        joining_only=statistics.mean(result["joining"] for result in results),
        joining_only_worst=min(result["joining"] for result in results),
        moves_per_server=statistics.mean(result["moves"] for result in results),
        by_size={
            f"{s} servers, {b} blocks": _summary(results[at * INSTANCES : (at + 1) * INSTANCES])
            for at, (s, b) in enumerate(SIZES)
        },
        instances=len(results),
        seconds=time.perf_counter() - started_at,
    )


def _summary(results: list[dict[str, float]]) -> dict[str, float]:
    after = [result["after"] for result in results]
    return {"mean": statistics.mean(after), "worst": min(after), "moves": statistics.mean(r["moves"] for r in results)}


def _instance(rng: random.Random, num_servers: int, num_blocks: int) -> dict[str, float]:
    """Speeds over a range of 1 to 8, memory for a sixth to a half of the blocks; together at least for all of them."""
    while True:
        powers = tuple(
            (2 ** rng.uniform(0, 3), rng.randint(max(1, num_blocks // 6), num_blocks // 2 + 1))
            for _ in range(num_servers)
        )
        if sum(blocks for _, blocks in powers) >= num_blocks:
            break
    optimum = best_weakest(num_blocks, powers)
    joined = _join(num_blocks, powers)
    rest = _Rest(num_blocks, joined)
    rest.reach()
    # without the author's plan: where servers are, not where a plan would have them
    served = [msgspec.structs.replace(load, plan=()) for load in rest.loads.values()]
    return {
        "joining": _weakest(num_blocks, joined) / optimum,
        "after": _weakest(num_blocks, served) / optimum,
        "moves": rest.moves / num_servers,
    }


def _weakest(num_blocks: int, loads: Iterable[ServerLoad]) -> float:
    return float(SwarmLoad(num_blocks, loads).blocks.throughput.min())


def _join(num_blocks: int, powers: Powers) -> list[ServerLoad]:
    """Servers join in the order given, each where `choose_span` sends it."""
    loads: list[ServerLoad] = []
    for number, (rate, blocks) in enumerate(powers):
        span = choose_span(SwarmLoad(num_blocks, loads), blocks, rate)
        loads.append(ServerLoad(PeerId(f"{number:08x}{0:056x}"), span, span, False, rate, blocks))
    return loads


class _Rest:
    """Servers with all blocks on their disks decide in turn, on a clock that jumps to the next of their wakes."""

    def __init__(self, num_blocks: int, loads: Iterable[ServerLoad]) -> None:
        rng = random.Random(0)
        self.loads = {load.peer: load for load in loads}
        self.moves = 0
        self._num_blocks = num_blocks
        self._now = 0.0
        inventory = BlockInventory(num_blocks, num_blocks)
        inventory.add(range(num_blocks))
        self._rebalancers = {peer: Rebalancer(peer, inventory, rng) for peer in self.loads}

    def reach(self) -> None:
        """Go on until no server has done anything for longer than any rest."""
        acted_at = 0.0
        while self._now - acted_at <= 2 * REST_S:
            acted, wakes_at = False, math.inf
            for peer in sorted(self.loads):
                while (decision := self._decide(peer)).action is not None:
                    acted |= self._act(peer, decision.action)
                wakes_at = min(wakes_at, decision.wake_at)
            acted_at = self._now if acted else acted_at
            self._now = self._now + GOSSIP_S if acted else max(wakes_at, self._now + GOSSIP_S)

    def _decide(self, peer: PeerId) -> Decision:
        return self._rebalancers[peer].decide(SwarmLoad(self._num_blocks, self.loads.values()), self._now)

    def _act(self, peer: PeerId, action: Action) -> bool:
        """Do it; whether the records are others then."""
        load = self.loads[peer]
        match action:
            case Ask():
                self._rebalancers[peer].asked(self._now)
                return False
            case Publish(plan):
                load = msgspec.structs.replace(load, plan=plan)
            case Announce(span):
                load = msgspec.structs.replace(load, goal=span, moving=True)
            case Withdraw():
                load = msgspec.structs.replace(load, goal=load.serves, moving=False)
            case Move(span):
                load = msgspec.structs.replace(load, goal=span, serves=span, moving=False)
                self._rebalancers[peer].moved(True, self._now)
                self.moves += 1
        self.loads[peer] = load
        return True


def best_weakest(num_blocks: int, powers: Powers) -> float:
    """The greatest strength that the weakest block can have, exactly, by branch and bound.

    To lift each block to a level, servers may be placed from left to right, each beginning at the first block that is
    below the level: one that began before it may be shifted there without loss. Starting from the best found so far, the
    search looks for anything better until there is nothing. A branch ends where what is left of the servers, each at
    most at the level on as many blocks as it has memory for, cannot fill what is missing.
    """
    best, found = 0.0, _lift(num_blocks, powers, 1e-12)
    while found is not None:
        best = min(found)
        found = _lift(num_blocks, powers, best * (1 + 1e-9))
    return best


def _lift(num_blocks: int, powers: Powers, level: float) -> tuple[float, ...] | None:
    """Strengths that are nowhere below `level`; None if there are none."""
    order = sorted(powers, reverse=True)
    most = [min(rate, blocks * level) for rate, blocks in order]
    seen: set[tuple[int, int, tuple[float, ...]]] = set()

    def place(used: int, strength: tuple[float, ...], block: int, last: int) -> tuple[float, ...] | None:
        while block < num_blocks and strength[block] >= level:
            block, last = block + 1, -1
        if block == num_blocks:
            return strength
        missing = sum(level - value for value in strength[block:] if value < level)
        if sum(area for at, area in enumerate(most) if not used >> at & 1) < missing * (1 - 1e-12):
            return None
        key = (used, last, tuple(min(value, level) for value in strength[block:]))
        if key in seen:
            return None
        seen.add(key)
        for at in range(last + 1, len(order)):  # servers that begin at one block: in one order only
            if used >> at & 1:
                continue
            rate, blocks = order[at]
            for length in range(min(blocks, num_blocks - block), 0, -1):
                lifted = tuple(value + rate / length for value in strength[block : block + length])
                after = strength[:block] + lifted + strength[block + length :]
                found = place(used | 1 << at, after, block, at)
                if found is not None:
                    return found
        return None

    return place(0, (0.0,) * num_blocks, 0, -1)
