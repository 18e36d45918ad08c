"""What a server fetches while its line is idle."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from shoal.errors import NetworkError
from shoal.server.hosting.prefetcher import IDLE_S, RETRY_S, Prefetcher
from shoal.swarm.placement.block_inventory import BlockInventory
from shoal.types import Span
from tests.support.virtual_clock import VirtualClock
from tests.unit.server.hosting.test_rebalancing import FIRST, record


class Store:
    """A disk that has the server's own blocks, of which there are six; a block takes so long to come."""

    def __init__(self, clock: VirtualClock, ahead: int = 5) -> None:
        self.record = record("a", FIRST)
        self.inventory = BlockInventory(6, ahead)
        self.inventory.add(FIRST.blocks())
        self.fetched: list[str] = []
        self.fails = False
        self.takes_s = 0.0
        self._clock = clock

    async def fetch(self, span: Span) -> None:
        """Store."""
        self.fetched.append(str(span))
        await self._clock.sleep(self.takes_s)
        if self.fails:
            raise NetworkError("the hub does not answer")
        self.inventory.add(span.blocks())


class Fetching:
    """A prefetcher at work, and what its operator hears."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.store = Store(self.clock)
        self.notices: list[str] = []
        self.prefetcher = Prefetcher(self.store, self.notices.append, self.clock)


@pytest.fixture
async def fetching() -> AsyncIterator[Fetching]:
    """It runs while the test does."""
    made = Fetching()
    keeping = asyncio.ensure_future(made.prefetcher.keep())
    yield made
    assert not keeping.done()
    keeping.cancel()


async def test_nothing_is_fetched_unasked(fetching: Fetching) -> None:
    """The line belongs to the sessions."""
    await fetching.clock.advance(10 * IDLE_S)
    assert fetching.store.fetched == []
    assert (fetching.prefetcher.wanted, fetching.prefetcher.ahead) == (None, False)


async def test_what_is_wanted_comes_before_what_is_near(fetching: Fetching) -> None:
    """And what is near only where that is allowed, up to what the owner allows."""
    fetching.prefetcher.want(Span(4, 6))
    await fetching.clock.advance(IDLE_S)
    assert fetching.store.fetched == ["4:5", "5:6"]
    fetching.prefetcher.want(None)
    fetching.prefetcher.fetch_ahead(True)
    await fetching.clock.advance(2 * IDLE_S)
    assert fetching.store.fetched == ["4:5", "5:6"]


async def test_blocks_that_are_near(fetching: Fetching) -> None:
    """One after another, nearest first, until there are as many as the owner allows."""
    fetching.prefetcher.fetch_ahead(True)
    await fetching.clock.advance(IDLE_S)
    assert fetching.store.fetched == ["3:4", "4:5"]


async def test_a_failure_is_not_the_end(fetching: Fetching) -> None:
    """The operator hears of it, and the block is tried again after a while."""
    fetching.store.fails = True
    fetching.prefetcher.want(Span(4, 5))
    await fetching.clock.advance(IDLE_S)
    assert fetching.notices == ["block 4 cannot be fetched (the hub does not answer)"]
    fetching.store.fails = False
    await fetching.clock.advance(RETRY_S)
    assert fetching.store.fetched == ["4:5", "4:5"]
    assert len(fetching.notices) == 1


async def test_how_long_a_block_takes_is_learnt(fetching: Fetching) -> None:
    """Unless it was on the disk already, which says nothing of the line."""
    fetching.prefetcher.want(Span(3, 5))
    await fetching.clock.advance(IDLE_S)
    assert fetching.store.inventory.fetch_s == 0.0
    fetching.store.takes_s = 8.0
    fetching.prefetcher.want(Span(5, 6))
    await fetching.clock.advance(IDLE_S + 8.0)
    assert fetching.store.inventory.fetch_s == 8.0
