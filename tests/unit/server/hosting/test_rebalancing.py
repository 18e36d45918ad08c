"""What a server does about moving, step by step on a virtual clock."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from shoal.errors import NetworkError
from shoal.server.hosting.rebalancing import FAILED_REST_S, JUDGE_S, Rebalancing
from shoal.swarm.directory.records import ServerRecord
from shoal.swarm.placement.block_inventory import BlockInventory
from shoal.swarm.placement.rebalancer import NOTICE_S
from shoal.swarm.placement.shared_plan import Plan
from shoal.types import ModelSpec, Span
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

    async def move(self, span: Span) -> bool:
        """Host."""
        self.calls.append(f"move {span}")
        if self.fails == "move":
            return False
        self.record = msgspec.structs.replace(self.record, span=span, next_span=None)
        return True


class Gossip:
    """Everybody is known at once; `dead` are found out when they are asked."""

    def __init__(self, *records: ServerRecord) -> None:
        self.records = list(records)
        self.dead: set[str] = set()

    def others(self, fingerprint: str) -> list[ServerRecord]:
        """Gossip."""
        return self.records

    async def ask(self, fingerprint: str, count: int = 32) -> None:
        """Gossip."""
        self.records = [one for one in self.records if one.peer not in self.dead]

    async def tell_some(self) -> None:
        """Gossip."""


@pytest.fixture
def host() -> Host:
    """One of two servers of the first half."""
    return Host(record("a", FIRST))


@pytest.fixture
def gossip() -> Gossip:
    """The other one, and a pinned one of the second half whose record outlives it."""
    return Gossip(record("b", FIRST, max_blocks=0), record("c", SECOND, max_blocks=0))


def moving_of(host: Host, gossip: Gossip, clock: VirtualClock) -> Rebalancing:
    """What is tested."""
    return Rebalancing(host, gossip, lambda text: None, clock)  # type: ignore[arg-type]  # a gossip by its shape


async def test_a_gap_is_found_and_filled(host: Host, gossip: Gossip) -> None:
    """Its last server is dead, which a look finds out; the move is announced, the blocks fetched, and then it goes."""
    clock = VirtualClock()
    moving = moving_of(host, gossip, clock)
    assert (await moving.look()).action == "wait"
    gossip.dead.add("c" * 64)
    assert (await moving.look()).action == "announce"
    assert host.calls == ["goal 3:6", "fetch 3:6"]
    assert (await moving.look()).action == "wait"
    await clock.advance(NOTICE_S)
    assert (await moving.look()).action == "go"
    assert host.record.span == SECOND
    assert moving.moves == 1


async def test_who_is_counted_on_is_asked_once_more(host: Host, gossip: Gossip) -> None:
    """The server that would stay dies during the notice: nobody leaves its blocks."""
    clock = VirtualClock()
    moving = moving_of(host, gossip, clock)
    gossip.dead.add("c" * 64)
    await moving.look()
    gossip.dead.add("b" * 64)
    await clock.advance(NOTICE_S)
    assert (await moving.look()).action in ("wait", "withdraw")
    assert host.record.span == FIRST
    assert moving.moves == 0


@pytest.mark.parametrize("fails", ["fetch", "move"])
async def test_a_move_that_failed(host: Host, gossip: Gossip, fails: str) -> None:
    """It is taken back, nobody counts on this server for a while, and then it tries again."""
    clock = VirtualClock()
    moving = moving_of(host, gossip, clock)
    gossip.dead.add("c" * 64)
    host.fails = fails
    await moving.look()
    await clock.advance(NOTICE_S)
    await moving.look()
    assert (host.record.span, host.record.next_span, host.record.max_blocks) == (FIRST, None, 0)
    assert (await moving.look()).action == "wait"
    host.fails = None
    await clock.advance(FAILED_REST_S)
    assert (await moving.look()).action == "announce"
    assert host.record.max_blocks == 3


async def test_it_judges_about_once_a_minute(host: Host, gossip: Gossip) -> None:
    """And every second while a move is announced."""
    clock = VirtualClock()
    moving = moving_of(host, gossip, clock)
    gossip.dead.add("c" * 64)
    keeping = asyncio.ensure_future(moving.keep())
    await clock.advance(1.25 * JUDGE_S + NOTICE_S + 2.0)
    keeping.cancel()
    assert host.record.span == SECOND


async def test_the_first_server_of_a_medium_swarm_plans(host: Host) -> None:
    """Nobody serves the second half: it says who should go there, finds itself in the plan or not, and asks who is alive."""
    names = [f"{n:x}" for n in range(1, 10)] + ["b", "c", "d", "e", "f"]
    others = [record(name, FIRST) for name in names]
    more = [msgspec.structs.replace(one, peer=one.peer[:-1] + "x") for one in others[:5]]
    host = Host(record("0", FIRST, on_disk=(Span(0, 6),)))
    gossip = Gossip(*others, *more)
    moving = moving_of(host, gossip, VirtualClock())
    await moving.glance()
    assert host.record.plan
    assert {span.covers(Span(3, 4)) or span.stop > 3 for _, span in host.record.plan} == {True}
    assert moving.prefetcher.ahead
