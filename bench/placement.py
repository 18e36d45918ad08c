"""`python -m bench placement`: servers that come one by one and then move by the rule, against the exact optimum."""

from __future__ import annotations

import random
import statistics
import time
from typing import Any

import msgspec

from bench.report import report
from shoal.swarm.directory.records import ServerRecord
from shoal.swarm.placement.rebalancer import NOTICE_S, MovePlan, Rebalancer, judge_move
from shoal.swarm.placement.swarm_load import choose_span, holders, strengths
from shoal.types import ModelSpec, PeerId, Span

SIZES = ((6, 6), (6, 8), (8, 8), (10, 10))
"""(servers, blocks)."""
INSTANCES = 10
"""Of each size."""
LOOK_S = 60.0
MAX_LOOKS = 600
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
    settled, moves = _settle(num_blocks, joined)
    return {
        "joining": _weakest(num_blocks, joined) / optimum,
        "after": _weakest(num_blocks, settled) / optimum,
        "moves": moves / num_servers,
    }


def _weakest(num_blocks: int, records: list[ServerRecord]) -> float:
    return float(strengths(num_blocks, holders(num_blocks, records)).min())


def _join(num_blocks: int, powers: Powers) -> list[ServerRecord]:
    """Servers join in the order given, each where `choose_span` sends it."""
    records: list[ServerRecord] = []
    for number, (rate, blocks) in enumerate(powers):
        span = choose_span(num_blocks, blocks, records, rate)
        records.append(_record(number, num_blocks, span, rate, blocks))
    return records


def _record(number: int, num_blocks: int, span: Span, rate: float, blocks: int) -> ServerRecord:
    return ServerRecord(
        peer=f"{number:064x}",
        sequence=1,
        issued_at=0.0,
        expires_at=0.0,
        addresses=(),
        model=ModelSpec("bench", "", num_blocks, 1),
        span=span,
        prefill_rows_per_s=rate / len(span),
        max_blocks=blocks,
    )


def _settle(num_blocks: int, records: list[ServerRecord]) -> tuple[list[ServerRecord], int]:
    """Everybody looks around every LOOK_S and moves by the rule, rests included, until nobody wants to."""
    records, now, moves = list(records), 0.0, 0
    movers = [Rebalancer(PeerId(record.peer)) for record in records]
    for _ in range(MAX_LOOKS):
        now += LOOK_S
        quiet = True
        for at, record in enumerate(records):
            verdict = judge_move(num_blocks, records, movers[at], now)
            quiet &= verdict.action == "wait"
            plan = MovePlan(verdict.span, now - NOTICE_S) if verdict.action == "announce" and verdict.span else None
            if verdict.action != "wait":
                movers[at] = Rebalancer(movers[at].peer, plan, now + verdict.rest_s)
                records[at] = msgspec.structs.replace(record, next_span=verdict.span)
            if verdict.action == "go" and verdict.span is not None:
                rate = record.prefill_rows_per_s * len(record.span)
                records[at] = _record(at, num_blocks, verdict.span, rate, record.max_blocks)
                moves += 1
        rests = [mover.rests_until for mover in movers if mover.rests_until > now]
        if quiet and not rests:
            break
        now = max(now, min(rests) - LOOK_S) if quiet else now
    return records, moves


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
