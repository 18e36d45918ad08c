"""Fetches blocks while the line is idle: what a plan wants of this server, then what may be wanted next."""

from __future__ import annotations

from typing import Protocol

from shoal.clock import Clock
from shoal.errors import ShoalError
from shoal.server.gossip import Notice
from shoal.swarm.directory.records import ServerRecord
from shoal.swarm.placement.block_inventory import BlockInventory
from shoal.types import Span

IDLE_S = 3.0
"""How often it looks whether there is something to fetch."""
RETRY_S = 60.0
"""After a fetch that failed."""
READ_S = 0.1
"""A block that takes less was on the disk, and says nothing of the line."""


class Store(Protocol):
    """A server's disk."""

    inventory: BlockInventory

    @property
    def record(self) -> ServerRecord:
        """As it was last announced."""
        ...

    async def fetch(self, span: Span) -> None:
        """Get blocks onto this machine's disk; raises ShoalError."""
        ...


class Prefetcher:
    """One block after another: of the span that is wanted; nothing else unless it fetches ahead."""

    def __init__(self, store: Store, notice: Notice, clock: Clock) -> None:
        self._wanted: Span | None = None
        self._ahead = False
        self._store = store
        self._notice = notice
        self._clock = clock

    @property
    def wanted(self) -> Span | None:
        """The span that this server is to serve next."""
        return self._wanted

    @property
    def ahead(self) -> bool:
        """Whether blocks are fetched that nothing wants yet."""
        return self._ahead

    def want(self, span: Span | None) -> None:
        """Fetch this span first."""
        self._wanted = span

    def fetch_ahead(self, ahead: bool) -> None:
        """Fetch, or not, what may be wanted next."""
        self._ahead = ahead

    async def keep(self) -> None:
        """Fetch for ever."""
        while True:
            block = self._next()
            await (self._clock.sleep(IDLE_S) if block is None else self._fetch(block))

    def _next(self) -> int | None:
        inventory = self._store.inventory
        lacking = self._wanted is not None and inventory.lacks(self._wanted)
        return inventory.next_block(self._store.record.span, self._wanted) if lacking or self._ahead else None

    async def _fetch(self, block: int) -> None:
        begun = self._clock.monotonic()
        try:
            await self._store.fetch(Span(block, block + 1))
        except ShoalError as error:
            self._notice(f"block {block} cannot be fetched ({error})")
            await self._clock.sleep(RETRY_S)
            return
        elapsed = self._clock.monotonic() - begun
        if elapsed > READ_S:
            self._store.inventory.fetched_in(elapsed)
