"""A server from loading its blocks to leaving the swarm."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import random
from collections.abc import Callable
from types import TracebackType

from shoal.clock import SYSTEM_CLOCK, Clock
from shoal.engine.scheduler import Scheduler
from shoal.engine.worker import Worker
from shoal.errors import NetworkError, ShoalError
from shoal.net.dial import Dialler
from shoal.net.framed import FrameChannel
from shoal.net.node import listen_all, make_transports
from shoal.net.throttle import RateLimit
from shoal.net.transport import Transport
from shoal.server.config import ServerConfig
from shoal.server.loading import LoadedBlocks, load, model_fingerprint
from shoal.server.redirect import Redirector
from shoal.server.service import DRAIN_S, Service
from shoal.server.sessions import SessionTable
from shoal.swarm import exchange
from shoal.swarm.directory import Directory
from shoal.swarm.discovery.announcer import Announcer
from shoal.swarm.discovery.options import Discoveries
from shoal.swarm.discovery.ticket import Ticket
from shoal.swarm.identity import Identity
from shoal.swarm.membership.member import Member
from shoal.swarm.records import RECORD_LIFETIME_S, RECORD_RENEWAL_S, ServerRecord, sign_record
from shoal.types import PeerId
from shoal.wire.messages import Leaving, Status

EXCHANGE_S = 3.0
"""How often records are exchanged with one random member."""

TOLD_AT_ONCE = 8
"""Members that hear of news at once: a server that leaves, a node that is revoked; the others learn it by exchange."""

DRAIN_POLL_S = 0.05

EXPIRY_S = 0.5
"""How often leases are looked at."""

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much is done, and how much there is to do."""


class Server:
    """Serves a span of blocks. Open with `async with`; `ticket` then reaches it. `wrap` puts emulated links on transports."""

    def __init__(
        self,
        config: ServerConfig,
        progress: Progress | None = None,
        clock: Clock = SYSTEM_CLOCK,
        wrap: Callable[[Transport, PeerId], Transport] | None = None,
    ) -> None:
        self.config = config
        kept = Identity.load(config.identity) if config.identity else None
        self._member = Member(config.private, "server", clock, kept) if config.private is not None else None
        self.identity = self._member.identity if self._member is not None else kept or Identity.generate()
        self.directory = Directory(clock)
        self.addresses: tuple[str, ...] = ()
        self._progress = progress or (lambda what, done, total: None)
        self._clock = clock
        self._wrap = wrap or (lambda transport, me: transport)
        self._stack = contextlib.AsyncExitStack()
        self._tickets = [Ticket.parse(text) for text in config.peers]
        self._sequence = int(clock.wall() * 1000)

    @property
    def ticket(self) -> str:
        """One string that reaches this server."""
        return str(Ticket(self.identity.peer, self._record.addresses))

    @property
    def private_swarm(self) -> str | None:
        """The name of the private swarm that this server is in, if it is in one."""
        return self._member.folder.name if self._member is not None else None

    @property
    def record(self) -> ServerRecord:
        """This server's record as it was last announced."""
        return self._record

    @property
    def ordered_to_leave(self) -> asyncio.Event:
        """Set when this node's owner asked for it from elsewhere, or when its compute thread has died."""
        return self._service.ordered_to_leave

    @property
    def failure(self) -> BaseException | None:
        """What ended the compute thread, if something did."""
        return self.worker.failure

    async def drain(self, deadline_s: float = DRAIN_S) -> int:
        """Take no new sessions, say so, and wait until clients have moved theirs; returns how many did not."""
        self._service.leaving_at = self._clock.monotonic() + deadline_s
        self._announce()
        for session in self.sessions:
            session.report(Leaving(deadline_s))
        told = asyncio.ensure_future(self._tell_some())
        while len(self.sessions) and self._clock.monotonic() < self._service.leaving_at:
            await self._clock.sleep(DRAIN_POLL_S)
        await told
        return len(self.sessions)

    async def _tell_some(self) -> None:
        """Exchange with a few members at once; the others learn it from them."""
        known = [signed.record for signed in self.directory.records() if signed.record.peer != self.identity.peer]
        some = random.sample(known, min(len(known), TOLD_AT_ONCE))
        await asyncio.gather(*(self._exchange(PeerId(near.peer), near.addresses) for near in some))

    def status(self) -> Status:
        """This server's load now."""
        return self._service.status()

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
        config = self.config
        made = make_transports(self.identity.key, config.listen, config.transport, config.discovery.iroh_relay)
        transports = [self._wrap(transport, self.identity.peer) for transport in made]
        for transport in transports:
            self._stack.push_async_callback(transport.close)
        if self._member is not None:
            transports = await self._member.enter(transports)
            self._member.guard(self.directory)
            self._tickets += [Ticket.parse(text) for text in self._member.tickets]
        self._dialler = Dialler(transports, clock=self._clock, only=config.transport)
        self._announcer = await self._stack.enter_async_context(await self._discovering())
        await self._join()
        held = [signed.record for signed in self.directory.records()]
        self._loaded = loaded = await asyncio.to_thread(load, config, held, self._progress)
        self.worker = await self._stack.enter_async_context(Worker(loaded.runner, Scheduler()))
        redirector = Redirector(self.identity, self._dialler, self._clock)
        self._stack.push_async_callback(redirector.close)
        self.sessions = SessionTable(self.worker, loaded.runner.cache.pages, self._clock, config.max_sessions)
        self._service = Service(self.identity, loaded.holding, self.directory, self.sessions, self.worker, redirector)
        if config.max_upload_bits_per_s is not None:
            self._service.throttle = RateLimit(config.max_upload_bits_per_s / 8, self._clock)
        self.addresses = await listen_all(transports, self._service.handle)
        self._announce()
        await self._announcer.start(self._announce)
        await self._join()
        works = [self._keep_announcing(), self._keep_exchanging(), self._keep_expiring()]
        if self._member is not None:
            self._member.listening(self.ticket)
            works.append(self._member.keep(self.directory, self._tell_some))
        for work in works:
            task = asyncio.create_task(work)
            self._stack.push_async_callback(_cancelled, task)

    async def _discovering(self) -> Announcer:
        """What finds a first member when tickets do not, and keeps this server findable, as far as that was asked for."""
        config, me = self.config, self.identity.peer
        print_ = await asyncio.to_thread(model_fingerprint, config) if config.discovery.wanted else None
        discoveries = Discoveries(config.discovery, print_, self._clock)
        finder = discoveries.finder(self.directory, self._dialler, me)

        def notice(text: str) -> None:
            self._progress(text, 0, 0)

        return Announcer(discoveries, finder, lambda: self.directory.get(me), notice, self._clock)

    def _announce(self) -> None:
        now = self._clock.wall()
        self._sequence = max(self._sequence + 1, int(now * 1000))
        loaded: LoadedBlocks = self._loaded
        status = self._service.status()
        self._record = ServerRecord(
            peer=self.identity.peer,
            sequence=self._sequence,
            issued_at=now,
            expires_at=now + RECORD_LIFETIME_S,
            addresses=self._announcer.reachable(self.addresses),
            model=loaded.holding.model,
            span=loaded.holding.span,
            name=self.config.name,
            numerics=loaded.holding.numerics.key,
            bits_per_weight=loaded.bits_per_weight,
            decode_rows_per_s=status.decode_rows_per_s,
            prefill_rows_per_s=status.prefill_rows_per_s,
            free_tokens=status.free_tokens,
            queued_rows=status.queued_rows,
            draining=self._service.leaving_at is not None,
            version=importlib.metadata.version("shoal"),
        )
        proof = self._member.proof if self._member is not None else b""
        self.directory.add(sign_record(self._record, self.identity).data, proof=proof)

    async def _join(self) -> None:
        """Exchange records with the members that the tickets name; those out of reach are tried again later."""
        await asyncio.gather(*(self._exchange(PeerId(ticket.peer), ticket.addresses) for ticket in self._tickets))
        if not self.directory.records() and self.config.blocks is None:
            await self._announcer.look()

    async def _exchange(self, peer: PeerId, addresses: tuple[str, ...]) -> bool:
        try:
            async with FrameChannel(await self._dialler.dial(peer, addresses)) as channel:
                await exchange.ask(channel, self.directory)
        except ShoalError as error:
            self._progress(f"{peer[:8]} does not answer: {error}", 0, 0)
            return False
        return True

    async def _keep_announcing(self) -> None:
        while True:
            await self._clock.sleep(RECORD_RENEWAL_S)
            self._announce()

    async def _keep_exchanging(self) -> None:
        choose = random.Random()
        while True:
            await self._clock.sleep(EXCHANGE_S)
            known = {s.record.peer: s.record.addresses for s in self.directory.records()}
            known.update({ticket.peer: ticket.addresses for ticket in self._tickets if ticket.peer not in known})
            known.pop(self.identity.peer, None)
            if known:
                peer = choose.choice(sorted(known))
                with contextlib.suppress(NetworkError):
                    await self._exchange(PeerId(peer), known[peer])

    async def _keep_expiring(self) -> None:
        while True:
            await self._clock.sleep(EXPIRY_S)
            await self.sessions.expire()
            for session in self.sessions:
                if self._member is not None and self._member.is_revoked(session.owner):
                    await self.sessions.close(session)
            if self.worker.failure is not None:
                self.ordered_to_leave.set()  # whoever runs this server must not go on announcing it


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
