"""Servers as placement sees them, for tests of the rule."""

from __future__ import annotations

import random

import msgspec

from shoal.swarm.placement.block_inventory import BlockInventory
from shoal.swarm.placement.rebalancer import Ask, Decision, Rebalancer
from shoal.swarm.placement.swarm_load import ServerLoad, SwarmLoad
from shoal.types import PeerId, Span


def a_load(name: str, start: int, stop: int, **changes: object) -> ServerLoad:
    """A server of 120 block·rows/s that serves a span and has memory for no more; `name` is a digit of its node id."""
    span = Span(start, stop)
    fields: dict[str, object] = {"block_rows_per_s": 120.0, "max_blocks": stop - start, **changes}
    return ServerLoad(PeerId(name * 64), span, span, False, **fields)  # type: ignore[arg-type]  # as they are named


def moving(load: ServerLoad, goal: Span) -> ServerLoad:
    """The server after it has announced a move."""
    return msgspec.structs.replace(load, goal=goal, moving=True)


def some_loads(num_blocks: int, count: int, seed: int) -> list[ServerLoad]:
    """Servers of four blocks each, anywhere, with all blocks on their disks; every block is served."""
    rng = random.Random(seed)
    starts = [*range(0, num_blocks, 4), *(rng.randint(0, num_blocks - 4) for _ in range(count - num_blocks // 4))]
    loads = [
        a_load("0", at, at + 4, block_rows_per_s=rng.choice([1.0, 2.0, 5.0]), on_disk=(Span(0, num_blocks),))
        for at in starts
    ]
    return [msgspec.structs.replace(one, peer=PeerId(f"{rng.getrandbits(256):064x}")) for one in loads]


def a_rebalancer(peer: PeerId, num_blocks: int, on_disk: Span | None = None) -> Rebalancer:
    """Of a server with these blocks on its disk; all if none are named."""
    inventory = BlockInventory(num_blocks, 0)
    inventory.add((on_disk or Span(0, num_blocks)).blocks())
    return Rebalancer(peer, inventory, random.Random(0))


def decide(rebalancer: Rebalancer, swarm: SwarmLoad, now: float) -> Decision:
    """What it does when all that it asks have answered."""
    for _ in range(4):
        decision = rebalancer.decide(swarm, now)
        if not isinstance(decision.action, Ask):
            return decision
        rebalancer.asked(now)
    raise AssertionError("it asks for ever")
