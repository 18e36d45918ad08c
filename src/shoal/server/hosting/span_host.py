"""What a server holds and says of it: it serves one span, and may move to another."""

from __future__ import annotations

import asyncio
import importlib.metadata
from collections.abc import Callable

import msgspec

from shoal.errors import ShoalError
from shoal.server.hosting.served_span import ServedSpan
from shoal.server.hosting.span_loading import Source, fetch, is_local, load, max_blocks
from shoal.server.ledger import Ledger
from shoal.server.network import Network
from shoal.server.serve_options import ServeOptions
from shoal.server.sessions.session_service import DRAIN_S
from shoal.swarm.directory.records import MAX_VERSION_CHARS, ServerRecord
from shoal.swarm.placement.block_inventory import BlockInventory
from shoal.swarm.placement.swarm_load import Plan
from shoal.types import Span

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much is done, and how much there is to do."""


class SpanHost:
    """Serves blocks of `source`; nothing before `serve`."""

    def __init__(
        self, config: ServeOptions, source: Source, network: Network, progress: Progress, ledger: Ledger
    ) -> None:
        self.served_span: ServedSpan | None = None
        self._record: ServerRecord | None = None
        self._failure: BaseException | None = None
        self._ledger = ledger
        self._config = config
        self._source = source
        self._network = network
        self._progress = progress
        self._goal: Span | None = None
        self._plan: Plan = ()
        self.inventory = BlockInventory(source.model.num_blocks, config.fetch_ahead)
        if is_local(source):
            self.inventory.add(range(source.model.num_blocks))
        self._movable = config.blocks is None
        self._max_blocks = max_blocks(config, source) if self._movable else 0
        self._block_rows_per_s = 0.0

    @property
    def record(self) -> ServerRecord:
        """As it was last announced."""
        assert self._record is not None, "nothing has been announced yet"
        return self._record

    @property
    def movable(self) -> bool:
        """Whether the swarm may count on its moving."""
        return self._movable

    def set_movable(self, movable: bool) -> None:
        """Whether the swarm may count on its moving, from the next announcement on."""
        self._movable = movable

    @property
    def current(self) -> ServedSpan:
        """The blocks that it serves, or served until a moment ago."""
        assert self.served_span is not None, "nothing has been served yet"
        return self.served_span

    @property
    def failure(self) -> BaseException | None:
        """Why the blocks cannot be served any more, if they cannot."""
        if self._failure is not None or self.served_span is None or self.served_span.compute.failure is None:
            return self._failure
        error = self.served_span.compute.failure
        told = ShoalError(f"the compute thread died: {type(error).__name__}: {error}")
        told.__cause__ = error
        return told

    def announce(self) -> None:
        """Say what it holds, or is about to hold, and how it fares."""
        span = self.served_span.span_info.span if self.served_span is not None else self._goal
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
            draining=self.served_span is None or self.served_span.leaving,
            next_span=self._goal,
            max_blocks=self._max_blocks if self._movable else 0,
            version=importlib.metadata.version("shoal")[:MAX_VERSION_CHARS],
            on_disk=self.inventory.spans(),
            fetch_s=self.inventory.fetch_s,
            plan=self._plan,
        )
        self._record = self._network.publish(
            self._with_load(record, self.served_span) if self.served_span is not None else record
        )

    def _with_load(self, record: ServerRecord, served_span: ServedSpan) -> ServerRecord:
        status = served_span.service.status()
        if status.prefill_rows_per_s:
            self._block_rows_per_s = status.prefill_rows_per_s * len(record.span)
        return msgspec.structs.replace(
            record,
            numerics=served_span.span_info.numerics.key,
            bits_per_weight=served_span.bits_per_weight,
            kl_nats=served_span.kl_nats,
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
        self.inventory.add(span.blocks())

    async def serve(self, span: Span) -> None:
        """Load blocks, say so while it lasts, and serve them. Raises ShoalError."""
        self.announce_goal(span)
        network = self._network
        telling = asyncio.gather(network.gossip.tell_some(), self._measure(span))  # who joins now chooses other blocks
        try:
            loaded = await asyncio.to_thread(load, self._config, self._source, span, self._progress)
        finally:
            await telling
        served_span = ServedSpan(loaded, network, self._config.max_sessions, self._ledger)
        await served_span.start()
        self.served_span = served_span
        network.dispatcher.answer_by(served_span.service)
        self.inventory.add(span.blocks())
        self.announce_goal(None)

    async def look_around(self) -> None:
        """Measure the ways to the servers of the next blocks."""
        await self._measure(self.record.span)

    async def _measure(self, span: Span) -> None:
        network = self._network
        await network.peer_latency.measure(span, network.gossip.others(self._source.model))

    async def drain(self, deadline_s: float) -> int:
        """Take no new sessions, say so, and wait until clients have moved theirs; returns how many did not."""
        self.current.begin_leaving(deadline_s)
        self.announce()
        _, left = await asyncio.gather(self._network.gossip.tell_some(), self.current.emptied())
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
        self._goal, before = span, self.current
        self._plan = ()  # others plan meanwhile
        await self.drain(deadline_s)
        if before.attended:
            self._progress("sessions found no other server: it stays", 0, 0)
            before.stay()
            self.announce_goal(None)
            return False
        self._network.dispatcher.answer_by(None)
        await before.close()
        try:
            await self.serve(span)
        except ShoalError as error:
            self._progress(f"blocks {span} could not be loaded ({error})", 0, 0)
            await self._return(before.span_info.span)
        await self._network.gossip.tell_some()
        self._progress(f"serving blocks {self.record.span}", 0, 0)
        self._ledger.add(moves=self.record.span == span)
        return self.record.span == span

    async def _return(self, span: Span) -> None:
        try:
            await self.serve(span)
        except ShoalError as error:
            self._failure = error
            raise

    async def close(self) -> None:
        """Give up the blocks; harmless when there are none."""
        if self.served_span is not None:
            await self.served_span.close()
