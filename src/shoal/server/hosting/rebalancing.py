"""Has a server judge now and then whether it should hold other blocks, and carries out what follows."""

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
from shoal.swarm.placement.rebalancer import Decision, MovePlan, Rebalancer, judge_move
from shoal.swarm.placement.shared_plan import MOST_SERVERS, Plan, PlanAuthor, agreed_holders, medium, planner
from shoal.swarm.placement.swarm_load import ServerLoad
from shoal.types import PeerId, Span

JUDGE_S = 60.0
"""How often a server asks itself whether to move; a quarter more or less, by chance."""

PLANNED_S = 1.0
"""How often while a move is announced."""

GLANCE_S = 3.0
"""How often a server of a medium swarm looks what the plan is."""

WATCH_S = 15.0
"""How often the server that plans, and the one that would be next, ask whether the others are alive."""

FAILED_REST_S = 600.0
"""After a move that failed nobody counts on this server's moving for so long: others wait for who is next in a plan."""


class Host(Protocol):
    """The server that moves."""

    inventory: BlockInventory

    @property
    def movable(self) -> bool:
        """Whether others may count on its moving."""
        ...

    def set_movable(self, movable: bool) -> None:
        """Whether others may count on it from the next announcement on."""
        ...

    @property
    def record(self) -> ServerRecord:
        """As it was last announced."""
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
    """Asks `judge_move`. Every decision is made on records of servers that have just answered."""

    def __init__(self, host: Host, gossip: Gossip, notice: Notice, clock: Clock) -> None:
        self.me = Rebalancer(PeerId(host.record.peer))
        self.moves = 0
        self._host = host
        self._gossip = gossip
        self._notice = notice
        self._clock = clock
        self._random = random.Random()
        self._drafter = PlanAuthor()
        self.prefetcher = Prefetcher(host, notice, clock)
        self._looks_at = self._watches_at = 0.0

    async def keep(self) -> None:
        """Judge for ever."""
        self._looks_at = self._next_look()
        while True:
            announced = self.me.plan is not None
            await self._clock.sleep(PLANNED_S if announced else GLANCE_S)
            if announced or self._clock.monotonic() >= self._looks_at:
                await self.look()
                self._looks_at = self._next_look()
            else:
                await self.glance()

    def _next_look(self) -> float:
        return self._clock.monotonic() + JUDGE_S * self._random.uniform(0.75, 1.25)

    async def glance(self) -> None:
        """In a medium swarm: watch and plan if it is this server's turn, and do what the plan has for it."""
        held = self._held()
        self.prefetcher.fetch_ahead(medium(len(held)))
        if not self.prefetcher.ahead:
            return
        held = await self._watch(held)
        await self._plan(held)
        mine = next((holder for holder in held if holder.peer == self.me.peer), None)
        self.prefetcher.want(mine.goal if mine is not None and mine.planned else None)
        if self.prefetcher.wanted is not None and not self._host.inventory.lacks(self.prefetcher.wanted):
            await self.look()

    async def _watch(self, held: list[ServerLoad]) -> list[ServerLoad]:
        """The server that plans, and the next one, see to it that they know who is alive."""
        serving = sorted(holder.peer for holder in held if holder.serves is not None)
        if self.me.peer not in serving[:2] or self._clock.monotonic() < self._watches_at:
            return held
        await self._gossip.ask(self._host.record.model.fingerprint, MOST_SERVERS)
        self._watches_at = self._clock.monotonic() + WATCH_S
        return self._held()

    async def _plan(self, held: list[ServerLoad]) -> None:
        if planner(held) != self.me.peer:
            return
        plan = await asyncio.to_thread(self._drafter.draft, self._host.record.model.num_blocks, held, self.me.peer)
        if plan is not None:
            self._host.announce_plan(plan)
            await self._gossip.tell_some()

    def _held(self) -> list[ServerLoad]:
        record = self._host.record
        records = [*self._gossip.others(record.model.fingerprint), record]
        return agreed_holders(record.model.num_blocks, records)

    async def look(self) -> Decision:
        """Judge once and act on it."""
        if not self._host.movable and self._clock.monotonic() >= self.me.rests_until:
            self._host.set_movable(True)
            self._host.announce_goal(None)
        verdict = self._judge()
        if self.me.plan is None or verdict.action == "go":
            await self._gossip.ask(self._host.record.model.fingerprint)
            verdict = self._judge()
        if verdict.action == "announce":
            assert verdict.span is not None
            await self.announce(verdict.span, verdict.agreed)
        elif verdict.action == "withdraw":
            self._withdraw(verdict.why, verdict.rest_s)
        elif verdict.action == "go":
            assert verdict.span is not None
            await self._go(verdict.span, verdict.rest_s)
        elif self.me.plan is None:
            self._note_unease(verdict.uneasy)
        return verdict

    def _note_unease(self, uneasy: bool) -> None:
        since = self.me.uneasy_since if self.me.uneasy_since is not None else self._clock.monotonic()
        self.me = Rebalancer(self.me.peer, None, self.me.rests_until, since if uneasy else None)

    def _judge(self) -> Decision:
        record = self._host.record
        records = [*self._gossip.others(record.model.fingerprint), record]
        return judge_move(record.model.num_blocks, records, self.me, self._clock.monotonic())

    async def announce(self, goal: Span, agreed: bool = False) -> None:
        """Say that it will move there, and have the blocks on this machine before it does."""
        self.me = Rebalancer(self.me.peer, MovePlan(goal, self._clock.monotonic(), agreed=agreed))
        self._notice(f"blocks {goal} need it more than {self._host.record.span}: it will move there")
        self._host.announce_goal(goal)
        await self._gossip.tell_some()
        try:
            await self._host.fetch(goal)
        except ShoalError as error:
            self._fail(f"blocks {goal} cannot be fetched ({error})")

    async def _go(self, goal: Span, rest_s: float) -> None:
        try:
            moved = await self._host.move(goal)
        except ShoalError as error:
            self._fail(str(error))
            return
        self.moves += moved
        if moved:
            self._rest(rest_s)
        else:
            self._fail(f"it could not leave for blocks {goal}")

    def _fail(self, why: str) -> None:
        self._host.set_movable(False)
        self._withdraw(why, FAILED_REST_S)

    def _withdraw(self, why: str, rest_s: float) -> None:
        self._notice(f"it stays at blocks {self._host.record.span}: {why}")
        self._rest(rest_s)
        self._host.announce_goal(None)

    def _rest(self, seconds: float) -> None:
        self.me = Rebalancer(self.me.peer, rests_until=self._clock.monotonic() + seconds)
