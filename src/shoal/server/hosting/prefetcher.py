"""Fetches blocks while the line is idle: those of the server's goal, then those that may be wanted next."""

from __future__ import annotations

from typing import Protocol

from shoal.clock import Clock
from shoal.errors import ShoalError
from shoal.server.gossip import Notice
from shoal.swarm.placement.block_inventory import BlockInventory
from shoal.types import Span

IDLE_S = 3.0
"""How often it looks whether there is something to fetch."""
READ_S = 0.1
"""A block that takes less was on the disk, and says nothing of the line."""


class Store(Protocol):
    """A server's disk."""

    inventory: BlockInventory

    async def fetch(self, span: Span) -> None:
        """Get blocks onto this machine's disk; raises ShoalError."""
        ...


class Chooser(Protocol):
    """What says which block comes next."""

    async def next_fetch(self) -> int | None:
        """The block to fetch now, if there is one."""
        ...

    async def fetch_failed(self, why: str) -> None:
        """That block could not be fetched."""
        ...


class Prefetcher:
    """Fetches one block after another."""

    def __init__(self, store: Store, chooser: Chooser, notice: Notice, clock: Clock) -> None:
        self._store = store
        self._chooser = chooser
        self._notice = notice
        self._clock = clock

    async def keep(self) -> None:
        """Fetch for ever."""
        while True:
            block = await self._chooser.next_fetch()
            await (self._clock.sleep(IDLE_S) if block is None else self._fetch(block))

    async def _fetch(self, block: int) -> None:
        begun = self._clock.monotonic()
        try:
            await self._store.fetch(Span(block, block + 1))
        except ShoalError as error:
            self._notice(f"block {block} cannot be fetched ({error})")
            await self._chooser.fetch_failed(str(error))
            return
        elapsed = self._clock.monotonic() - begun
        if elapsed > READ_S:
            self._store.inventory.fetched_in(elapsed)
