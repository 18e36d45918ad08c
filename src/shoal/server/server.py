"""A server from joining the swarm to leaving it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from functools import partial
from types import TracebackType

from shoal.clock import SYSTEM_CLOCK, Clock
from shoal.engine.compute_thread import ComputeThread
from shoal.protocol.messages import Status
from shoal.server.hosting.rebalancing import Rebalancing
from shoal.server.hosting.span_host import Progress, SpanHost
from shoal.server.hosting.span_loading import choose_blocks, open_source, told_of_base, with_chosen_bits
from shoal.server.ledger import Ledger
from shoal.server.network import Network, Wrap, node_credentials, open_node
from shoal.server.serve_options import ServeOptions
from shoal.server.sessions.hop_session import SessionTable
from shoal.server.sessions.session_service import DRAIN_S
from shoal.swarm.directory.directory import Directory
from shoal.swarm.directory.records import RECORD_RENEWAL_S, ServerRecord
from shoal.swarm.discovery.ticket import Ticket
from shoal.swarm.identity import Identity
from shoal.tasks import OwnedTasks, keep_running
from shoal.types import Span, missing_spans

EXPIRY_S = 0.5
"""How often leases are looked at."""

log = logging.getLogger("shoal.server")


class Server:
    """Serves a span of blocks. Open with `async with`; `ticket` then reaches it.

    The server owns its tasks. Gossip, announcements, moves and discovery begin again after a mistake, which is logged; when
    the blocks cannot be computed or loaded any more, the body of `async with` is cancelled and the error raised from it.
    `wrap` puts emulated links on transports; `move_clock` times the decisions about moving to other blocks.
    """

    def __init__(
        self,
        config: ServeOptions,
        progress: Progress | None = None,
        clock: Clock = SYSTEM_CLOCK,
        wrap: Wrap | None = None,
        move_clock: Clock | None = None,
    ) -> None:
        self.config = config
        self.ledger = Ledger(clock)
        self._credentials = node_credentials(config, clock)
        self._wrap = wrap
        self._progress = progress or (lambda what, done, total: None)
        self._clock = clock
        self._move_clock = move_clock or clock
        self._stack = contextlib.AsyncExitStack()
        self._tasks = OwnedTasks()
        self._network: Network | None = None
        self._span_host: SpanHost | None = None
        self._rebalancing: Rebalancing | None = None
        self._moves: asyncio.Task[None] | None = None

    @property
    def identity(self) -> Identity:
        """The key that names this server."""
        return self._credentials.identity

    @property
    def network(self) -> Network:
        """How it reaches others and is reached."""
        assert self._network is not None, "the server is not open: use `async with`"
        return self._network

    @property
    def directory(self) -> Directory:
        """The servers that it knows."""
        return self.network.directory

    @property
    def span_host(self) -> SpanHost:
        """What holds the blocks."""
        assert self._span_host is not None, "the server is not open: use `async with`"
        return self._span_host

    @property
    def rebalancing(self) -> Rebalancing | None:
        """What moves this server to other blocks; None where its owner chose them."""
        return self._rebalancing

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
        return self.network.member.swarm_name if self.network.member is not None else None

    @property
    def record(self) -> ServerRecord:
        """This server's record as it was last announced."""
        return self.span_host.record

    @property
    def serving(self) -> bool:
        """Whether it takes sessions: it is not loading, and not about to leave."""
        return self.network.dispatcher.service is not None and not self.span_host.current.leaving

    @property
    def blocks_only_here(self) -> tuple[Span, ...]:
        """The blocks that no other server has, as far as this one knows: the model is incomplete when it leaves."""
        others = self.network.gossip.others(self.record.model)
        return missing_spans(self.record.span, (one.span for one in others if not one.draining))

    @property
    def sessions(self) -> SessionTable:
        """Those that it has now."""
        return self.span_host.current.sessions

    @property
    def worker(self) -> ComputeThread:
        """What computes the present blocks."""
        return self.span_host.current.compute

    @property
    def ordered_to_leave(self) -> asyncio.Event:
        """Set when this node's owner asked for it from elsewhere."""
        return self.network.dispatcher.ordered_to_leave

    def status(self) -> Status:
        """This server's load now."""
        return self.span_host.current.service.status()

    async def drain(self, deadline_s: float = DRAIN_S) -> int:
        """Take no new sessions, say so, and wait until clients have moved theirs; returns how many did not."""
        if self._moves is not None:
            self._moves.cancel()
            await asyncio.wait([self._moves])
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
        await self._stack.__aexit__(kind, error, trace)
        log.info("left the swarm")

    async def _start(self) -> None:
        self._progress("opening the checkpoint", 0, 0)
        source = await asyncio.to_thread(open_source, self.config)
        if told := told_of_base(source):
            self._progress(told, 0, 0)
        self.config = config = with_chosen_bits(self.config, source)
        node = await open_node(config, self._credentials, self._wrap, self._stack)
        self._network = network = Network(config, node, source.model.fingerprint, self._notice, self._clock)
        await network.listen(self._stack)
        await network.join()
        self._span_host = host = SpanHost(config, source, network, self._progress, self.ledger)
        self._stack.push_async_callback(host.close)
        if config.blocks is None:
            await network.gossip.ask(source.model)  # a record outlives its server
        await host.serve(choose_blocks(config, source, network.gossip.others()))
        await self._stack.enter_async_context(self._tasks)
        await network.announcer.start(host.announce)
        await network.join()
        self._start_tasks(host)
        log.info("serves blocks %s of %s", host.record.span, source.model.name)

    def _start_tasks(self, host: SpanHost) -> None:
        network, clock = self.network, self._clock
        self._tasks.start(self._keep_expiring(host))
        self._tasks.start(keep_running("announcing", self._keep_announcing, clock, log))
        self._tasks.start(keep_running("gossip", network.gossip.keep, clock, log))
        if network.member is not None:
            network.member.listening(self.ticket)
            keep = partial(network.member.keep, self.directory, network.gossip.tell_some)
            self._tasks.start(keep_running("membership", keep, clock, log))
        if self.config.blocks is None:
            self._rebalancing = moving = Rebalancing(host, network.gossip, self._notice, self._move_clock)
            self._moves = self._tasks.start(keep_running("rebalancing", moving.keep, clock, log))
            self._tasks.start(keep_running("prefetching", moving.prefetcher.keep, clock, log))

    async def _keep_announcing(self) -> None:
        while True:
            await self._clock.sleep(RECORD_RENEWAL_S)
            await self.span_host.look_around()
            self.span_host.announce()

    async def _keep_expiring(self, host: SpanHost) -> None:
        """End sessions whose lease has run out or whose client was revoked. Raises what keeps the blocks from being served."""
        member = self.network.member
        while True:
            await self._clock.sleep(EXPIRY_S)
            await self.sessions.expire()
            for session in self.sessions:
                if member is not None and member.is_revoked(session.owner):
                    await self.sessions.close(session)
            if host.failure is not None:
                raise host.failure

    @staticmethod
    def _notice(text: str) -> None:
        log.info("%s", text)
