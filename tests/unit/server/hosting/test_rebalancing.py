"""What a server does about moving, step by step on a virtual clock."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

import msgspec
import pytest

from shoal.errors import NetworkError, ShoalError
from shoal.server.hosting.rebalancing import Rebalancing
from shoal.swarm.directory.records import ServerRecord
from shoal.swarm.placement.block_inventory import BlockInventory
from shoal.swarm.placement.rebalancer import FAILED_REST_S, LOOK_S, NOTICE_S, TRUST_S, Announce, Ask, Decision, Move
from shoal.swarm.placement.swarm_load import Plan
from shoal.types import ModelSpec, PeerId, Span
from tests.support.virtual_clock import VirtualClock

FIRST, SECOND = Span(0, 3), Span(3, 6)
MODEL = ModelSpec("tiny", "f" * 32, 6, 48)


def record(name: str, span: Span, **changes: object) -> ServerRecord:
    """A server that serves, with memory for three blocks."""
    fields: dict[str, object] = {"prefill_rows_per_s": 1.0, "max_blocks": 3, **changes}
    return ServerRecord(name * 64, 1, 0.0, 300.0, (), MODEL, span, **fields)  # type: ignore[arg-type]  # as they are named


class Host:
    """Does what it is told, and remembers it."""

    def __init__(self, own: ServerRecord) -> None:
        self.record = own
        self.movable = True
        self.inventory = BlockInventory(6, 0)
        self.inventory.add(own.span.blocks())
        self.fails: str | None = None
        self.calls: list[str] = []

    def set_movable(self, movable: bool) -> None:
        """Host."""
        self.movable = movable

    def announce_goal(self, goal: Span | None) -> None:
        """Host."""
        self.calls.append(f"goal {goal}")
        max_blocks = 3 if self.movable else 0
        self.record = msgspec.structs.replace(self.record, next_span=goal, max_blocks=max_blocks)

    def announce_plan(self, plan: Plan) -> None:
        """Host."""
        self.record = msgspec.structs.replace(self.record, plan=plan)

    async def fetch(self, span: Span) -> None:
        """Host."""
        self.calls.append(f"fetch {span}")
        if self.fails == "fetch":
            raise NetworkError("the hub does not answer")
        self.inventory.add(span.blocks())

    async def move(self, span: Span) -> bool:
        """Host."""
        self.calls.append(f"move {span}")
        if self.fails == "move":
            self.announce_goal(None)
            return False
        if self.fails == "load":
            raise ShoalError("the blocks cannot be loaded, nor those of before")
        self.record = msgspec.structs.replace(self.record, span=span, next_span=None)
        return True


class Gossip:
    """All servers are known at once; `dead` are found out when they are asked."""

    def __init__(self, *records: ServerRecord) -> None:
        self.records = list(records)
        self.dead: set[str] = set()

    def others(self, model: ModelSpec) -> list[ServerRecord]:
        """Gossip."""
        return self.records

    async def ask(self, model: ModelSpec, peers: Collection[PeerId] | None = None) -> None:
        """Gossip."""
        silent = self.dead if peers is None else self.dead.intersection(peers)
        self.records = [one for one in self.records if one.peer not in silent]

    async def tell_some(self) -> None:
        """Gossip."""


@pytest.fixture
def host() -> Host:
    """One of three servers of the first half; two come before it."""
    return Host(record("d", FIRST))


@pytest.fixture
def gossip() -> Gossip:
    """The others, all pinned, and a last one of the second half whose record outlives it."""
    first = [record(name, FIRST, max_blocks=0) for name in "ab"]
    return Gossip(*first, record("c", SECOND, max_blocks=0))


def moving_of(host: Host, gossip: Gossip, clock: VirtualClock, heard: list[str] | None = None) -> Rebalancing:
    """What is tested."""
    notice = (heard if heard is not None else []).append
    return Rebalancing(host, gossip, notice, clock)  # type: ignore[arg-type]  # a gossip by its shape


async def until_it_acts(moving: Rebalancing, clock: VirtualClock, within_s: float) -> Decision:
    """Its next decision that is not to wait or ask."""
    deadline = clock.monotonic() + within_s
    while clock.monotonic() <= deadline:
        decision = await moving.step()
        if decision.action is None:
            await clock.advance(decision.wake_at - clock.monotonic())
        elif not isinstance(decision.action, Ask):
            return decision
    raise AssertionError(f"it has done nothing: {decision.why}")


async def announced(host: Host, gossip: Gossip, clock: VirtualClock, heard: list[str] | None = None) -> Rebalancing:
    """The only server of the second half is dead, which a look finds out, and the move there has been announced."""
    moving = moving_of(host, gossip, clock, heard)
    gossip.dead.add("c" * 64)
    decision = await until_it_acts(moving, clock, TRUST_S + 3 * LOOK_S)
    assert decision.action == Announce(SECOND)
    return moving


async def test_a_gap_is_found_and_filled(host: Host, gossip: Gossip) -> None:
    """The move is announced, the blocks are fetched, and then it goes."""
    clock = VirtualClock()
    moving = await announced(host, gossip, clock)
    assert host.record.next_span == SECOND
    fetching = asyncio.ensure_future(moving.prefetcher.keep())
    assert (await until_it_acts(moving, clock, 10.0)).action == Move(SECOND)
    fetching.cancel()
    assert host.calls == ["goal 3:6", "fetch 3:4", "fetch 4:5", "fetch 5:6", "move 3:6"]
    assert host.record.span == SECOND
    assert moving.moves == 1


async def test_who_is_counted_on_is_asked_once_more(host: Host, gossip: Gossip) -> None:
    """The servers that would stay die during the notice: the last one does not leave its blocks."""
    clock = VirtualClock()
    host.inventory.add(SECOND.blocks())
    moving = await announced(host, gossip, clock)
    gossip.dead.update({"a" * 64, "b" * 64})
    for _ in range(20):
        await moving.step()
        await clock.advance(1.0)
    assert gossip.records == []
    assert host.record.span == FIRST
    assert moving.moves == 0


@pytest.mark.parametrize("fails", ["fetch", "move", "load"])
async def test_a_move_that_failed(host: Host, gossip: Gossip, fails: str) -> None:
    """It is taken back, others do not count on this server for a while, and then it tries again."""
    clock, heard = VirtualClock(), list[str]()
    moving = await announced(host, gossip, clock, heard)
    host.fails = fails
    fetching = asyncio.ensure_future(moving.prefetcher.keep())
    await until_it_acts(moving, clock, NOTICE_S + 5.0)
    await moving.step()
    assert (host.record.span, host.record.max_blocks) == (FIRST, 0)
    assert moving.rebalancer.announced is None
    assert any("3" in text for text in heard)
    host.fails = None
    tried_at = clock.monotonic()
    assert (await until_it_acts(moving, clock, FAILED_REST_S + TRUST_S + 3 * LOOK_S)).action == Announce(SECOND)
    assert clock.monotonic() >= tried_at + FAILED_REST_S
    fetching.cancel()
    assert host.record.max_blocks == 3


async def test_it_decides_and_acts_by_itself(host: Host, gossip: Gossip) -> None:
    """About once a minute, and every second while a move is announced."""
    clock = VirtualClock()
    moving = moving_of(host, gossip, clock)
    gossip.dead.add("c" * 64)
    keeping = asyncio.ensure_future(moving.keep())
    fetching = asyncio.ensure_future(moving.prefetcher.keep())
    await clock.advance(TRUST_S + 3 * LOOK_S + NOTICE_S + 10.0)
    keeping.cancel()
    fetching.cancel()
    assert host.record.span == SECOND


async def test_the_first_server_plans() -> None:
    """The second half has no server: the author says who should go there, and a planned server follows at once."""
    others = [record(name, FIRST) for name in "123456789"]
    host, clock = Host(record("0", FIRST, on_disk=(Span(0, 6),))), VirtualClock()
    moving = moving_of(host, Gossip(*others), clock)
    await until_it_acts(moving, clock, 1.0)
    goals = dict(host.record.plan)
    assert goals
    assert any(span.stop > 3 for span in goals.values())
    name = max(goals)[0]
    told = [host.record, *(one for one in others if one.peer[0] != name)]
    follower = Host(record(name, FIRST))
    follower.inventory.add(range(6))
    decision = await until_it_acts(moving_of(follower, Gossip(*told), clock), clock, 1.0)
    assert decision.action == Announce(goals[name * 8])


async def test_a_move_can_be_asked_for(host: Host, gossip: Gossip) -> None:
    """It is announced like any other, and withdrawn if it is no gain."""
    clock = VirtualClock()
    host.inventory.add(SECOND.blocks())
    moving = moving_of(host, gossip, clock)
    await moving.announce(Span(1, 4))
    assert host.record.next_span == Span(1, 4)
    while moving.rebalancer.announced is not None:
        await moving.step()
        await clock.advance(1.0)
    assert host.record.next_span is None
    assert moving.moves == 0
