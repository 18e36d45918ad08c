"""What a server holds and says of it: it serves one span, and may move to another."""

from __future__ import annotations

import asyncio
import importlib.metadata
from collections.abc import Callable

import msgspec

from shoal.errors import ShoalError
from shoal.server.config import ServerConfig
from shoal.server.loading import Source, fetch, is_local, load, max_blocks
from shoal.server.network import Network
from shoal.server.service import DRAIN_S
from shoal.server.tenure import Tenure
from shoal.swarm.agreed import Plan
from shoal.swarm.records import ServerRecord
from shoal.swarm.stock import Stock
from shoal.types import Span

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much is done, and how much there is to do."""


class Resident:
    """Serves blocks of `source`; nothing before `serve`. `movable` tells the swarm whether to count on its moving."""

    def __init__(self, config: ServerConfig, source: Source, network: Network, progress: Progress) -> None:
        self.tenure: Tenure | None = None
        self.failure: BaseException | None = None
        self._config = config
        self._source = source
        self._network = network
        self._progress = progress
        self._goal: Span | None = None
        self._plan: Plan = ()
        self.stock = Stock(source.model.num_blocks, config.fetch_ahead)
        if is_local(source):
            self.stock.add(range(source.model.num_blocks))
        self.movable = config.blocks is None
        self._max_blocks = max_blocks(config, source) if self.movable else 0
        self._block_rows_per_s = 0.0

    @property
    def present(self) -> Tenure:
        """The blocks that it serves, or served until a moment ago."""
        assert self.tenure is not None, "nothing has been served yet"
        return self.tenure

    def announce(self) -> None:
        """Say what it holds, or is about to hold, and how it fares."""
        span = self.tenure.holding.span if self.tenure is not None else self._goal
        assert span is not None
        record = ServerRecord(
            self._network.identity.peer,
            sequence=0,
            issued_at=0.0,
            expires_at=0.0,
            addresses=(),
            model=self._source.model,
            span=span,
            name=self._config.name,
            draining=self.tenure is None or self.tenure.leaving,
            next_span=self._goal,
            max_blocks=self._max_blocks if self.movable else 0,
            version=importlib.metadata.version("shoal"),
            on_disk=self.stock.spans(),
            fetch_s=self.stock.fetch_s,
            plan=self._plan,
        )
        self.record = self._network.publish(self._with_load(record, self.tenure) if self.tenure is not None else record)

    def _with_load(self, record: ServerRecord, tenure: Tenure) -> ServerRecord:
        status = tenure.service.status()
        if status.prefill_rows_per_s:
            self._block_rows_per_s = status.prefill_rows_per_s * len(record.span)
        return msgspec.structs.replace(
            record,
            numerics=tenure.holding.numerics.key,
            bits_per_weight=tenure.bits_per_weight,
            decode_rows_per_s=status.decode_rows_per_s,
            prefill_rows_per_s=self._block_rows_per_s / len(record.span),  # as measured on other blocks, at first
            free_tokens=status.free_tokens,
            queued_rows=status.queued_rows,
        )

    def announce_goal(self, goal: Span | None) -> None:
        """Say where it will move, or (None) that it will not."""
        self._goal = goal
        self.announce()

    def announce_plan(self, plan: Plan) -> None:
        """Say where this server thinks that others should go."""
        self._plan = plan
        self.announce()

    async def fetch(self, span: Span) -> None:
        """Get blocks onto this machine's disk; raises ShoalError."""
        await asyncio.to_thread(fetch, self._source, span)
        self.stock.add(span.blocks())

    async def serve(self, span: Span) -> None:
        """Load blocks, say so while it lasts, and serve them. Raises ShoalError."""
        self.announce_goal(span)
        network = self._network
        telling = asyncio.gather(network.gossip.tell_some(), self._measure(span))  # who joins now chooses other blocks
        try:
            loaded = await asyncio.to_thread(load, self._config, self._source, span, self._progress)
        finally:
            await telling
        tenure = Tenure(loaded, network.identity, network.redirector, self._config.max_sessions, network.throttle)
        await tenure.start()
        self.tenure, network.reception.service = tenure, tenure.service
        self.stock.add(span.blocks())
        self.announce_goal(None)

    async def look_around(self) -> None:
        """Measure the ways to the servers of the next blocks."""
        await self._measure(self.record.span)

    async def _measure(self, span: Span) -> None:
        network = self._network
        await network.neighbours.measure(span, network.gossip.others(self._source.model.fingerprint))

    async def drain(self, deadline_s: float) -> int:
        """Take no new sessions, say so, and wait until clients have moved theirs; returns how many did not."""
        self.present.begin_leaving(deadline_s)
        self.announce()
        _, left = await asyncio.gather(self._network.gossip.tell_some(), self.present.emptied())
        return left

    async def leave(self, deadline_s: float) -> int:
        """Drain for good."""
        self._goal = None
        return await self.drain(deadline_s)

    async def move(self, span: Span, deadline_s: float = DRAIN_S) -> bool:
        """Drain, and serve other blocks; False when it serves the same as before.

        It stays when a session whose client is there finds no other server in time, and goes back when the blocks cannot be
        loaded. Its weights are dropped before others are loaded: the memory that it was given may hold only one span. Raises
        ShoalError when it could not go back either; that is `failure` then.
        """
        self._goal, before = span, self.present
        await self.drain(deadline_s)
        if before.attended:
            self._progress("sessions found no other server: it stays", 0, 0)
            before.stay()
            self.announce_goal(None)
            return False
        self._network.reception.service = None
        await before.close()
        try:
            await self.serve(span)
        except ShoalError as error:
            self._progress(f"blocks {span} could not be loaded ({error})", 0, 0)
            await self._return(before.holding.span)
        await self._network.gossip.tell_some()
        self._progress(f"serving blocks {self.record.span}", 0, 0)
        return self.record.span == span

    async def _return(self, span: Span) -> None:
        try:
            await self.serve(span)
        except ShoalError as error:
            self.failure = error
            self._network.reception.ordered_to_leave.set()
            raise

    async def close(self) -> None:
        """Give up the blocks; harmless when there are none."""
        if self.tenure is not None:
            await self.tenure.close()
