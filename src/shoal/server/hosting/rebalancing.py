"""Carries out what a server's Rebalancer decides: records and gossip, fetching, and the move itself."""

from __future__ import annotations

import asyncio
import random
from typing import Protocol

from shoal.clock import Clock
from shoal.errors import ShoalError
from shoal.server.gossip import Gossip, Notice
from shoal.server.hosting.prefetcher import Prefetcher
from shoal.swarm.directory.records import ServerRecord
from shoal.swarm.placement.block_inventory import BlockInventory
from shoal.swarm.placement.rebalancer import (
    GOSSIP_S,
    LOOK_S,
    Action,
    Announce,
    Ask,
    Decision,
    Move,
    Publish,
    Rebalancer,
    Withdraw,
)
from shoal.swarm.placement.swarm_load import Plan, SwarmLoad, server_loads
from shoal.types import PeerId, Span


class Host(Protocol):
    """The server that moves."""

    inventory: BlockInventory

    @property
    def record(self) -> ServerRecord:
        """As it was last announced."""
        ...

    @property
    def movable(self) -> bool:
        """Whether others may count on its moving."""
        ...

    def set_movable(self, movable: bool) -> None:
        """Whether others may count on it from the next announcement on."""
        ...

    def announce_goal(self, goal: Span | None) -> None:
        """Say where it will move, or (None) that it will not."""
        ...

    def announce_plan(self, plan: Plan) -> None:
        """Say where this server thinks that others should go."""
        ...

    async def fetch(self, span: Span) -> None:
        """Get blocks onto this machine's disk; raises ShoalError."""
        ...

    async def move(self, span: Span) -> bool:
        """Drain, and serve other blocks; False when it stayed where it was."""
        ...


class Rebalancing:
    """Observes the records of servers that are believed to be alive, has the Rebalancer decide, and does what follows."""

    def __init__(self, host: Host, gossip: Gossip, notice: Notice, clock: Clock) -> None:
        self.moves = 0
        self.rebalancer = Rebalancer(PeerId(host.record.peer), host.inventory, random.Random())
        self.prefetcher = Prefetcher(host, self, notice, clock)
        self._host = host
        self._gossip = gossip
        self._notice = notice
        self._clock = clock
        self._swarm: SwarmLoad | None = None
        self._deciding = asyncio.Lock()  # a plan is made in a thread

    async def keep(self) -> None:
        """Decide and act for ever."""
        while True:
            decision = await self.step()
            if decision.action is None:
                await self._clock.sleep(max(decision.wake_at - self._clock.monotonic(), 0.0))

    async def step(self) -> Decision:
        """Decide once, and do it. Where servers follow a plan, a new one is seen within a round of gossip."""
        now = self._clock.monotonic()
        if self._host.movable != (movable := self.rebalancer.movable(now)):
            self._host.set_movable(movable)
            self._host.announce_goal(None)
        self._swarm = swarm = self._observe()
        async with self._deciding:
            if swarm.author == self.rebalancer.peer:
                decision = await asyncio.to_thread(self.rebalancer.decide, swarm, now)
            else:
                decision = self.rebalancer.decide(swarm, now)
        if decision.action is not None:
            await self._execute(decision.action)
            return decision
        wake_at = min(decision.wake_at, now + (LOOK_S if swarm.author is None else GOSSIP_S))
        return Decision(None, wake_at, decision.why)

    async def announce(self, goal: Span) -> None:
        """Announce a move to other blocks, as if the Rebalancer had decided so."""
        async with self._deciding:
            decision = self.rebalancer.announce(goal, False, self._clock.monotonic())
        assert decision.action is not None
        await self._execute(decision.action)

    async def next_fetch(self) -> int | None:
        """The block to fetch now, if there is one."""
        async with self._deciding:
            swarm = self._swarm
            return self.rebalancer.next_fetch(swarm, self._clock.monotonic()) if swarm is not None else None

    async def fetch_failed(self, why: str) -> None:
        """That block could not be fetched."""
        async with self._deciding:
            self.rebalancer.fetch_failed(why, self._clock.monotonic())

    def _observe(self) -> SwarmLoad:
        record = self._host.record
        records = [*self._gossip.others(record.model), record]
        return SwarmLoad(record.model.num_blocks, server_loads(record.model.num_blocks, records))

    async def _execute(self, action: Action) -> None:
        match action:
            case Ask(peers):
                await self._gossip.ask(self._host.record.model, peers)
                self.rebalancer.asked(self._clock.monotonic())
            case Publish(plan):
                self._host.announce_plan(plan)
                await self._gossip.tell_some()
            case Announce(span):
                self._notice(f"blocks {span} need it more than {self._host.record.span}: it will move there")
                self._host.announce_goal(span)
                await self._gossip.tell_some()
            case Withdraw(why):
                self._notice(f"it stays at blocks {self._host.record.span}: {why}")
                self._host.announce_goal(None)
                await self._gossip.tell_some()
            case Move(span):
                await self._move(span)

    async def _move(self, span: Span) -> None:
        try:
            arrived = await self._host.move(span)
        except ShoalError as error:
            self._notice(str(error))
            self._host.announce_goal(None)
            arrived = False
        if not arrived:
            self._notice(f"it could not move to blocks {span}")
        self.moves += arrived
        self.rebalancer.moved(arrived, self._clock.monotonic())
