"""A server of the simulator: what it brings, what it serves, and its Rebalancer."""

from __future__ import annotations

import random

from shoal.swarm.directory.records import RECORD_LIFETIME_S, ServerRecord
from shoal.swarm.placement.block_inventory import BlockInventory
from shoal.swarm.placement.rebalancer import Rebalancer
from shoal.swarm.placement.swarm_load import Plan, ServerLoad
from shoal.types import ModelSpec, PeerId, Span
from simulator.churn_model import ServerProfile

BLOCK_BYTES = 1.6e9
"""A block of Llama 3.1 405B at 4 bits."""
LOAD_S = 10.0
"""From the last byte on disk to serving, beside reading the blocks."""
DISK_BYTES_PER_S = 1e9


class SimServer:
    """`silent` are servers that it knows to be gone. `turn` counts the times at which it is to decide: what an earlier one has
    put into the calendar is void."""

    def __init__(
        self, peer: PeerId, power: ServerProfile, span: Span, inventory: BlockInventory, rng: random.Random
    ) -> None:
        self.peer = peer
        self.power = power
        self.span = span
        self.goal: Span | None = span
        self.plan: Plan = ()
        self.serves: Span | None = None
        self.joined = False
        self.fetching = False
        self.asking = False
        self.silent: set[PeerId] = set()
        self.turn = 0
        self.inventory = inventory
        self.rebalancer = Rebalancer(peer, inventory, rng)

    @property
    def block_s(self) -> float:
        """How long it fetches a block."""
        return BLOCK_BYTES / self.power.download_bytes_per_s

    @property
    def load(self) -> ServerLoad:
        """Its record, as placement sees it."""
        power = self.power
        return ServerLoad(
            self.peer,
            self.goal or self.span,
            self.serves,
            self.goal is not None,
            power.block_rows_per_s,
            power.max_blocks,
            self.inventory.spans(),
            self.block_s,
            not self.joined,
            self.plan,
        )

    def load_s(self, goal: Span) -> float:
        """How long it serves nothing before it serves a span that is on its disk."""
        return LOAD_S + len(goal) * BLOCK_BYTES / DISK_BYTES_PER_S

    def record(self, num_blocks: int, now: float) -> ServerRecord:
        """Its record, as routing sees it, while it serves."""
        assert self.serves is not None
        rate = self.power.block_rows_per_s / len(self.serves)
        return ServerRecord(
            peer=self.peer,
            sequence=1,
            issued_at=now,
            expires_at=now + RECORD_LIFETIME_S,
            addresses=(),
            model=ModelSpec("simulated", "", num_blocks, 1),
            span=self.serves,
            decode_rows_per_s=rate,
            prefill_rows_per_s=rate,
        )
