"""A server from joining the swarm to leaving it."""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType

from shoal.clock import SYSTEM_CLOCK, Clock
from shoal.engine.worker import Worker
from shoal.protocol.messages import Status
from shoal.server.hosting.rebalancing import Rebalancing
from shoal.server.hosting.span_host import Progress, SpanHost
from shoal.server.hosting.span_loading import choose_blocks, open_source
from shoal.server.network import Network, Wrap
from shoal.server.server_config import ServerConfig
from shoal.server.sessions.hop_session import SessionTable
from shoal.server.sessions.session_service import DRAIN_S
from shoal.swarm.directory.records import RECORD_RENEWAL_S, ServerRecord
from shoal.swarm.discovery.ticket import Ticket

EXPIRY_S = 0.5
"""How often leases are looked at."""


class Server:
    """Serves a span of blocks. Open with `async with`; `ticket` then reaches it.

    `wrap` puts emulated links on transports; `move_clock` times the decisions about moving to other blocks.
    """

    def __init__(
        self,
        config: ServerConfig,
        progress: Progress | None = None,
        clock: Clock = SYSTEM_CLOCK,
        wrap: Wrap | None = None,
        move_clock: Clock | None = None,
    ) -> None:
        self.config = config
        self._progress = progress or (lambda what, done, total: None)
        self.network = Network(config, self._notice, clock, wrap)
        self.identity = self.network.identity
        self.directory = self.network.directory
        self._clock = clock
        self._move_clock = move_clock or clock
        self._stack = contextlib.AsyncExitStack()
        self._moves: asyncio.Task[None] | None = None
        self.moving: Rebalancing | None = None

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where it listens."""
        return self.network.addresses

    @property
    def ticket(self) -> str:
        """One string that reaches this server."""
        return str(Ticket(self.identity.peer, self.record.addresses))

    @property
    def private_swarm(self) -> str | None:
        """The name of the private swarm that this server is in, if it is in one."""
        return self.network.member.folder.name if self.network.member is not None else None

    @property
    def record(self) -> ServerRecord:
        """This server's record as it was last announced."""
        return self.span_host.record

    @property
    def serving(self) -> bool:
        """Whether it takes sessions: it is not loading, and not about to leave."""
        return self.network.dispatcher.service is not None and not self.span_host.current.leaving

    @property
    def sessions(self) -> SessionTable:
        """Those that it has now."""
        return self.span_host.current.sessions

    @property
    def worker(self) -> Worker:
        """What computes the present blocks."""
        return self.span_host.current.worker

    @property
    def ordered_to_leave(self) -> asyncio.Event:
        """Set when this node's owner asked for it from elsewhere, or when it cannot compute any more."""
        return self.network.dispatcher.ordered_to_leave

    @property
    def failure(self) -> BaseException | None:
        """Why it cannot compute any more, if it cannot."""
        return self.span_host.failure or self.worker.failure

    def status(self) -> Status:
        """This server's load now."""
        return self.span_host.current.service.status()

    async def drain(self, deadline_s: float = DRAIN_S) -> int:
        """Take no new sessions, say so, and wait until clients have moved theirs; returns how many did not."""
        if self._moves is not None:
            await _cancelled(self._moves)
        return await self.span_host.leave(deadline_s)

    async def __aenter__(self) -> Server:
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def _start(self) -> None:
        config, network = self.config, self.network
        self._progress("opening the checkpoint", 0, 0)
        source = await asyncio.to_thread(open_source, config)
        await network.open(self._stack)
        await network.discover(self._stack, source.model.fingerprint)
        await network.join()
        self.span_host = span_host = SpanHost(config, source, network, self._progress)
        self._stack.push_async_callback(span_host.close)
        await span_host.serve(choose_blocks(config, source, network.gossip.others()))
        await network.announcer.start(span_host.announce)
        await network.join()
        works = [self._keep_announcing(), network.gossip.keep(), self._keep_expiring()]
        if network.member is not None:
            network.member.listening(self.ticket)
            works.append(network.member.keep(self.directory, network.gossip.tell_some))
        for work in works:
            self._stack.push_async_callback(_cancelled, asyncio.create_task(work))
        if config.blocks is None:
            self.moving = Rebalancing(span_host, network.gossip, self._notice, self._move_clock)
            self._moves = asyncio.create_task(self.moving.keep())
            self._stack.push_async_callback(_cancelled, self._moves)
            self._stack.push_async_callback(_cancelled, asyncio.create_task(self.moving.prefetcher.keep()))

    def _notice(self, text: str) -> None:
        self._progress(text, 0, 0)

    async def _keep_announcing(self) -> None:
        while True:
            await self._clock.sleep(RECORD_RENEWAL_S)
            await self.span_host.look_around()
            self.span_host.announce()

    async def _keep_expiring(self) -> None:
        member = self.network.member
        while True:
            await self._clock.sleep(EXPIRY_S)
            await self.sessions.expire()
            for session in self.sessions:
                if member is not None and member.is_revoked(session.owner):
                    await self.sessions.close(session)
            if self.worker.failure is not None:
                self.ordered_to_leave.set()  # whoever runs this server must not go on announcing it


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
