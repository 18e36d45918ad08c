"""Blocks are fetched one after another while the line is idle."""

from __future__ import annotations

import asyncio

from shoal.errors import NetworkError
from shoal.server.hosting.prefetcher import IDLE_S, Prefetcher
from shoal.swarm.placement.block_inventory import BlockInventory
from shoal.types import Span
from tests.support.virtual_clock import VirtualClock


class Disk:
    """Fetches within `takes_s`, except what fails; chooses the first block that is not there, of `wanted` ones."""

    def __init__(self, clock: VirtualClock, wanted: int, takes_s: float = 1.0) -> None:
        self.inventory = BlockInventory(6, 0)
        self.fails = False
        self.wanted = wanted
        self.takes_s = takes_s
        self.calls: list[str] = []
        self._clock = clock

    async def fetch(self, span: Span) -> None:
        """Store."""
        self.calls.append(f"fetch {span}")
        if self.fails:
            raise NetworkError("the hub does not answer")
        await self._clock.sleep(self.takes_s)
        self.inventory.add(span.blocks())

    async def next_fetch(self) -> int | None:
        """Chooser."""
        return next(iter(self.inventory.lacks(Span(0, self.wanted))), None)

    async def fetch_failed(self, why: str) -> None:
        """Chooser."""
        self.calls.append(why)
        self.fails = False


async def test_one_block_after_another() -> None:
    """Without a pause while there is something to fetch; a failure is told, and is not the end."""
    clock, notices = VirtualClock(), list[str]()
    disk = Disk(clock, 2)
    disk.fails = True
    keeping = asyncio.ensure_future(Prefetcher(disk, disk, notices.append, clock).keep())
    await clock.advance(2.0)
    assert disk.calls == ["fetch 0:1", "the hub does not answer", "fetch 0:1", "fetch 1:2"]
    assert notices == ["block 0 cannot be fetched (the hub does not answer)"]
    assert disk.inventory.fetch_s == 1.0
    disk.wanted = 3
    await clock.advance(IDLE_S)
    keeping.cancel()
    assert disk.calls[-1] == "fetch 2:3"


async def test_nothing_is_fetched_unasked() -> None:
    """The line belongs to the sessions."""
    clock = VirtualClock()
    disk = Disk(clock, 0)
    keeping = asyncio.ensure_future(Prefetcher(disk, disk, lambda text: None, clock).keep())
    await clock.advance(10 * IDLE_S)
    assert not keeping.done()
    keeping.cancel()
    assert disk.calls == []


async def test_how_long_a_block_takes_is_learnt() -> None:
    """Unless it was on the disk already, which says nothing of the line."""
    clock = VirtualClock()
    disk = Disk(clock, 2, takes_s=0.0)
    keeping = asyncio.ensure_future(Prefetcher(disk, disk, lambda text: None, clock).keep())
    await clock.advance(IDLE_S)
    assert disk.inventory.fetch_s == 0.0
    disk.takes_s, disk.wanted = 8.0, 3
    await clock.advance(IDLE_S + 8.0)
    keeping.cancel()
    assert disk.inventory.fetch_s == 8.0
