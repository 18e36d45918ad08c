"""One span of blocks from being served to being given up: the compute thread, the sessions, and the answers."""

from __future__ import annotations

from shoal.engine.batch_queue import BatchQueue
from shoal.engine.compute_thread import ComputeThread
from shoal.server.hosting.span_loading import LoadedBlocks
from shoal.server.ledger import Ledger
from shoal.server.network import Network
from shoal.server.sessions.hop_session import SessionTable
from shoal.server.sessions.session_service import SessionService

DRAIN_POLL_S = 0.05


class ServedSpan:
    """`start` it once and `close` it: the sessions that are left are closed then, and the weights are gone."""

    def __init__(self, loaded: LoadedBlocks, network: Network, max_sessions: int, ledger: Ledger) -> None:
        self.span_info = loaded.span_info
        self.bits_per_weight = loaded.bits_per_weight
        self.kl_nats = loaded.kl_nats
        self.compute = ComputeThread(loaded.runner, BatchQueue(depth=len(loaded.runner.span)))
        most = min(max_sessions, loaded.span_info.max_sessions)
        self.sessions = SessionTable(self.compute, loaded.runner.cache.pages, network.clock, most, network.throttle)
        self.service = SessionService(
            network.identity,
            loaded.span_info,
            self.sessions,
            self.compute,
            network.redirector,
            ledger,
            network.accounts,
            network.dispatcher.settled,
        )
        self._ledger = ledger
        self._clock = network.clock
        self._closed = False

    async def start(self) -> None:
        """Begin to compute."""
        await self.compute.__aenter__()

    async def close(self) -> None:
        """Close the sessions that are left, and drop the weights. Closing twice is harmless."""
        for session in self.sessions:
            await self.sessions.close(session)
        if not self._closed:
            self._closed = True
            self._ledger.add(rows=self.compute.stats.rows, found_rows=self.compute.stats.found_rows)
            await self.compute.__aexit__(None, None, None)

    @property
    def leaving(self) -> bool:
        """Whether it takes no new sessions."""
        return self.service.leaving_at is not None

    def begin_leaving(self, deadline_s: float) -> None:
        """Take no new sessions, and tell the clients of those that are there."""
        self.service.leave(deadline_s)

    async def emptied(self) -> int:
        """Wait until the sessions have moved, or the deadline; returns how many are left."""
        deadline = self.service.leaving_at
        while deadline is not None and len(self.sessions) and self._clock.monotonic() < deadline:
            await self._clock.sleep(DRAIN_POLL_S)
        return len(self.sessions)

    def stay(self) -> None:
        """It takes sessions again; those that have not moved need not."""
        self.service.stay()

    @property
    def attended(self) -> int:
        """Sessions whose clients are connected."""
        return sum(session.attended for session in self.sessions)
