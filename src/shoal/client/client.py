"""A client of a swarm: finds its servers, plans routes, opens sessions."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from shoal.client.activity import Activity, session_waits
from shoal.client.client_options import ROUTE_WAIT_S, SessionOptions
from shoal.client.served_models import ServedModels
from shoal.client.server_probe import ANSWER_S, FRESH_S, ServerProbe
from shoal.client.session.planner import SessionSpec
from shoal.clock import SYSTEM_CLOCK, Clock
from shoal.errors import GrantExceeded, NetworkError, NotAMember, ShoalError, UsageError
from shoal.protocol.messages import Description, Status
from shoal.swarm.directory import exchange
from shoal.swarm.directory.directory import Directory
from shoal.swarm.directory.records import ServerRecord, SignedRecord
from shoal.swarm.discovery.discovery_options import Discoveries, DiscoveryOptions
from shoal.swarm.discovery.finder import Finder
from shoal.swarm.discovery.ticket import Ticket
from shoal.swarm.identity import Identity
from shoal.swarm.membership.applicant import Applicant
from shoal.swarm.membership.member import CLIENT_EXCHANGE_S, Member
from shoal.swarm.membership.storage import PrivateSwarm
from shoal.swarm.routing.hop_costs import RoundTrips
from shoal.tasks import BackgroundTask, OwnedTasks, keep_running
from shoal.transport.channel import Transport
from shoal.transport.dialler import Dialler
from shoal.transport.frame_channel import FrameChannel
from shoal.transport.local_node import LOOPBACK, make_transports
from shoal.types import ModelSpec, PeerId, Span, SpanLike

if TYPE_CHECKING:
    import torch

    from shoal.client.saved_reply import SavedSession
    from shoal.client.session.session import Session

log = logging.getLogger("shoal.client")

ASKED_AT_ONCE = 8
"""Members that are asked for news where none answers that a ticket names: the first one may be a stranger that tells lies."""

LOOKED_AT_S = 1.5
"""How long a server may take to tell its load, the dial included; all are asked at once. Also how long a member may take whose
records are not needed: another one has answered, or its clock is in doubt."""

MAX_CAUSES, MAX_CAUSE_CHARS = 2, 200
"""Of an error that has a cause for each member."""

DOUBTED_TIMES, MAX_DOUBTED = 3, 1024
"""How often a node is asked what its clock shows, and of how many nodes this is counted."""


class ServerStatus(msgspec.Struct, frozen=True):
    """A server as the client sees it; `status` is None when it did not answer, and `problem` says why."""

    record: ServerRecord
    status: Status | None
    problem: str = ""


class _Reach(NamedTuple):
    """How a client reaches the swarm, once it has transports."""

    dialler: Dialler
    probe: ServerProbe
    models: ServedModels
    finder: Finder


class AsyncClient:
    """Use with `async with`. `peers` are tickets; one that reaches any member is enough. `wrap` emulates links.

    Without one that answers, `discoveries` are asked. `invite` is for a private swarm: an invite's text, which also says
    how to find it, or a PrivateSwarm joined before. `activity` tells what is waited for.
    """

    def __init__(
        self,
        peers: str | Sequence[str] = (),
        *,
        identity: Identity | None = None,
        invite: str | PrivateSwarm | None = None,
        only: str | None = None,
        discoveries: Discoveries | None = None,
        clock: Clock = SYSTEM_CLOCK,
        wrap: Callable[[Transport, PeerId], Transport] | None = None,
        activity: Activity | None = None,
    ) -> None:
        if not peers and invite is None and not (discoveries and discoveries.all):
            raise UsageError("a client needs at least one ticket to find the swarm (peers=[…]), or a discovery")
        peers = (peers,) if isinstance(peers, str) else peers
        private = PrivateSwarm(invite=invite) if isinstance(invite, str) else invite
        self._applicant = Applicant(private, "client", clock, identity) if private is not None else None
        self._member: Member | None = None
        self.identity = self._applicant.identity if self._applicant is not None else identity or Identity.generate()
        self.activity = activity or Activity()
        self.directory = Directory(clock)
        self._tickets = [Ticket.parse(text) for text in peers]
        self._transports: list[Transport] = []
        self._keeping: BackgroundTask | None = None
        self._heard_at = -math.inf
        self._doubted: Counter[str] = Counter()
        self._discoveries = discoveries or Discoveries(DiscoveryOptions())
        if invite is not None and self._discoveries.all:
            raise UsageError("a private swarm is found by its invite and its members, not by --lan or --public")
        self._only = only
        self.clock = clock
        self._reach: _Reach | None = None
        self._wrap = wrap or (lambda transport, me: transport)

    async def __aenter__(self) -> AsyncClient:
        with self.activity.doing("connecting"):
            return await self._join()

    async def _join(self) -> AsyncClient:
        options = self._discoveries.options
        listen = options.bind if options.wanted else LOOPBACK
        made = make_transports(self.identity.key, listen, self._only, options.iroh_relay)
        self._transports = [self._wrap(transport, self.identity.peer) for transport in made]
        try:
            if self._applicant is not None:
                await self._enter(self._applicant)
            dialler = Dialler(self._transports, clock=self.clock, only=self._only)
            vouchers = frozenset(ticket.peer for ticket in self._tickets)
            probe = ServerProbe(self.directory, dialler, self.clock, vouchers)
            models = ServedModels(self.directory, dialler, probe, vouchers, self.refresh, self.clock)
            self._reach = _Reach(dialler, probe, models, self._discoveries.finder(self.directory, dialler))
            await self.refresh()
            if self._member is not None:
                self._member.remember(self.directory)
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _enter(self, applicant: Applicant) -> None:
        self._member = member = await applicant.enter(self._transports)
        self._transports = member.transports
        member.guard(self.directory)
        self._tickets += [Ticket.parse(text) for text in member.tickets]
        if not self._tickets:
            raise UsageError("nobody of this swarm is known: give a member's ticket (peers=[…])")
        keep = partial(member.keep, self.directory, self.refresh, CLIENT_EXCHANGE_S)
        self._keeping = BackgroundTask("membership", keep_running("membership", keep, self.clock, log), log)

    async def close(self) -> None:
        """Close the transports. Closing twice is harmless."""
        self._reach = None
        if self._keeping is not None:
            await self._keeping.close()
        await self._discoveries.close()
        for transport in self._transports:
            await transport.close()

    @property
    def dialler(self) -> Dialler:
        """How this client reaches peers; raises UsageError outside `async with`."""
        return self._opened.dialler

    @property
    def _opened(self) -> _Reach:
        if self._reach is None:
            raise UsageError("the client is not open: use `async with`")
        return self._reach

    def __repr__(self) -> str:
        state = f"{len(self.records())} servers known" if self._reach is not None else "not open"
        return f"<AsyncClient {self.identity.peer[:8]}, {state}>"

    async def refresh(self) -> None:
        """Ask the swarm for news, and servers that failed whether they are back.

        Raises NetworkError when nobody at all could be reached.
        """
        probe = self._opened.probe
        await asyncio.gather(self._exchange(), probe.retry())

    async def _hear(self) -> None:
        """What is new, if the last news is old; a swarm that does not answer at once is looked for when it is needed."""
        if self.clock.monotonic() - self._heard_at > FRESH_S:
            with contextlib.suppress(NetworkError, TimeoutError):
                async with asyncio.timeout(ANSWER_S):
                    await self._exchange()

    async def _exchange(self) -> None:
        """Exchange records with every ticket's member, or if none answers with any member known or discovered."""
        contacts = [(PeerId(ticket.peer), ticket.addresses) for ticket in self._tickets]
        errors = await self._ask_until_answered(contacts)
        if any(error is None for error in errors):
            await self._ask_doubtful()
            return
        for some in self._opened.probe.batches([signed.record for signed in self.directory.ranked()], ASKED_AT_ONCE):
            found = await self._ask_until_answered([(PeerId(one.peer), one.addresses) for one in some])
            if any(error is None for error in found):
                return
        if await self._opened.finder.find():
            return
        problems = _told([error for error in errors if error is not None], self._opened.finder.problems)
        raise NetworkError(f"no member of the swarm answered: {problems}")

    async def _ask_until_answered(self, contacts: Sequence[tuple[PeerId, Sequence[str]]]) -> list[ShoalError | None]:
        """Exchange with all of these; what went wrong with each. When one has answered, the others have LOOKED_AT_S more."""
        async with OwnedTasks() as tasks:
            asks = [tasks.start(self._ask(*contact)) for contact in contacts]
            for ask in asyncio.as_completed(asks):
                if await ask is None:
                    await asyncio.wait(asks, timeout=LOOKED_AT_S)
                    break
            late = NetworkError(f"no answer within {LOOKED_AT_S:g} s of another's")
            return [ask.result() if ask.done() else late for ask in asks]

    async def _ask_doubtful(self) -> None:
        """Exchange with a few whose records were dropped for their times: they can say what their clocks show.

        They are strangers, and not waited for beyond LOOKED_AT_S.
        """
        doubtful = [signed.record for signed in self.directory.doubtful]
        some = [one for one in doubtful if self._doubted[one.peer] < DOUBTED_TIMES][-ASKED_AT_ONCE:]
        if len(self._doubted) > MAX_DOUBTED:
            self._doubted.clear()
        self._doubted.update(one.peer for one in some)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOKED_AT_S):
                await asyncio.gather(*(self._ask(PeerId(one.peer), one.addresses) for one in some))

    @property
    def problems(self) -> tuple[str, ...]:
        """Why records were dropped, as far as their nodes told them themselves or their times cannot be."""
        return self.directory.problems

    async def _ask(self, peer: PeerId, addresses: Sequence[str]) -> ShoalError | None:
        try:
            async with FrameChannel(await self.dialler.dial(peer, addresses)) as channel:
                await exchange.ask(channel, self.directory, self._opened.models.wanted)
        except ShoalError as error:
            return error
        self._heard_at = self.clock.monotonic()
        return None

    @property
    def private_swarm(self) -> str | None:
        """The name of the private swarm that this client is in, if it is in one."""
        return self._member.swarm_name if self._member is not None else None

    @property
    def tickets(self) -> tuple[str, ...]:
        """Ways to the swarm that have worked, or were given."""
        return tuple(map(str, self._tickets))

    def records(self) -> list[ServerRecord]:
        """The servers known now."""
        return [signed.record for signed in self.directory.records()]

    async def status(self) -> list[ServerStatus]:
        """Every known server with its load, asked for just now; raises UsageError outside `async with`."""
        probe, records = self._opened.probe, self.records()
        with self.activity.doing(f"asking {len(records)} servers"):
            return list(await asyncio.gather(*(self._status(probe, record) for record in records)))

    async def _status(self, probe: ServerProbe, record: ServerRecord) -> ServerStatus:
        try:
            async with asyncio.timeout(LOOKED_AT_S):
                return ServerStatus(record, await probe.ask(record))
        except ShoalError as error:
            return ServerStatus(record, None, str(error))
        except TimeoutError:
            return ServerStatus(record, None, f"no answer within {LOOKED_AT_S:g} s")

    async def describe(self, model: ModelSpec) -> tuple[Description, bytes]:
        """The model's description and its configuration as JSON text, from a server that answers.

        Raises NoRoute when no server of it does.
        """
        return await self._opened.models.describe(model)

    async def descriptions(self, wait_s: float = ROUTE_WAIT_S) -> list[Description]:
        """What may be meant by the model that the swarm serves, as servers describe it; see `ServedModels`.

        Waits for a first server. Raises NoRoute when nobody describes what it has.
        """
        return await self._opened.models.descriptions(wait_s)

    async def find_model(
        self, name: str | None = None, fingerprint: str | None = None, wait_s: float = ROUTE_WAIT_S
    ) -> ModelSpec:
        """The model by its name or fingerprint, or the only one, as its servers describe it; waits for a first server of it.

        Raises NoRoute when nobody serves it, FingerprintMismatch when checkpoints differ.
        """
        with self.activity.doing(f"waiting for a server of {name or 'a model'}"):
            return await self._opened.models.find(name, fingerprint, wait_s)

    async def wait_for(self, model: ModelSpec, wait_s: float = ROUTE_WAIT_S) -> None:
        """Wait for a first server of a checkpoint that this side has; raises what `find_model` raises."""
        await self._opened.models.wait_for(model, wait_s)

    def session(
        self,
        model: str | ModelSpec,
        span: SpanLike | None = None,
        *,
        max_tokens: int = 4096,
        wait_s: float = ROUTE_WAIT_S,
        options: SessionOptions | None = None,
    ) -> AbstractAsyncContextManager[Session]:
        """A session over `span` ("10:20", (10, 20), all blocks: None) of a model given by name, fingerprint or spec.

        Entering raises NoRoute when blocks stay missing, ServerFull when the only servers of some blocks are full, and
        NetworkError when they are out of reach.
        """
        options = SessionOptions(max_tokens=max_tokens) if options is None else options
        if not isinstance(options, SessionOptions):
            raise UsageError(f"options cannot be {options!r}: it is a SessionOptions", field="options")
        return self._session(model, None if span is None else Span.of(span), options, wait_s)

    @contextlib.asynccontextmanager
    async def _session(
        self, model: str | ModelSpec, span: Span | None, options: SessionOptions, wait_s: float
    ) -> AsyncIterator[Session]:
        spec = model if isinstance(model, ModelSpec) else await self._resolve(model, wait_s)
        session = await self._open(spec, span, options, wait_s)
        try:
            yield session
        finally:
            await session.close()

    async def _resolve(self, model: str, wait_s: float) -> ModelSpec:
        by_fingerprint = any(record.model.fingerprint == model for record in self.records())
        if by_fingerprint:
            return await self.find_model(fingerprint=model, wait_s=wait_s)
        return await self.find_model(name=model, wait_s=wait_s)

    async def open_session(self, model: ModelSpec, options: SessionOptions, wait_s: float = ROUTE_WAIT_S) -> Session:
        """A session over all blocks that the caller closes; raises what `session` raises on entering."""
        return await self._open(model, None, options, wait_s)

    async def _open(self, model: ModelSpec, span: Span | None, options: SessionOptions, wait_s: float) -> Session:
        """An opened session; servers that are full or out of reach are avoided as long as others cover their blocks."""
        span = (span or Span(0, model.num_blocks)).check(model.num_blocks)
        probe = self._opened.probe
        with self.activity.doing("asking servers of the model"):
            await asyncio.gather(probe.look(model, span), self._hear())
        session = self._new_session(model, span, options)
        try:
            with self.activity.doing(lambda: session_waits(session) or "opening a session"):
                await session.open(wait_s)
        except GrantExceeded as error:
            await session.close()
            text = f"a session of {options.max_tokens} tokens is more than its servers can hold: {error}"
            raise GrantExceeded(f"{text}. Lower max_tokens (of a chat, its context), or shorten the prompt") from error
        except BaseException:
            await session.close()
            raise
        return session

    def _new_session(self, model: ModelSpec, span: Span, options: SessionOptions, resumed: int = 0) -> Session:
        # Here, so that a client that opens no session (`shoal status`) does without torch.
        from shoal.client.session.session import Session

        return Session(SessionSpec(model, span, self.identity.peer, options, resumed), self, self.clock)

    async def resume(self, saved: SavedSession, hidden_states: torch.Tensor, wait_s: float = ROUTE_WAIT_S) -> Session:
        """Take up a saved session that the caller closes, whose rows so far are `hidden_states` [position, hidden].

        Raises what `session` raises on entering, and SessionFenced when a later process has it; it may be tried again.
        """
        session = self._new_session(saved.model, saved.span, saved.options, saved.resumed)
        try:
            with self.activity.doing(lambda: session_waits(session) or "taking up the session"):
                await session.resume(saved, hidden_states, wait_s)
        except BaseException:
            await session.close(end=False)
            raise
        return session

    def candidates(self, model: ModelSpec) -> tuple[list[ServerRecord], RoundTrips]:
        """Planner: the servers that may be asked, by what is known now."""
        return self._opened.probe.candidates(model)

    def record(self, peer: PeerId) -> SignedRecord:
        """Planner: a server's record; raises NoRoute."""
        return self._opened.probe.record(peer)

    def failed(self, record: ServerRecord) -> None:
        """Planner: the server of this record did not answer."""
        self._opened.probe.failed(record)

    def caught(self, record: ServerRecord) -> None:
        """Planner: the server of this record did not do what it says it does."""
        self._opened.probe.caught(record)


def _told(errors: Sequence[ShoalError], found: Sequence[str]) -> str:
    """Why no member answered, in a few causes. Who is refused by members is told that alone: it is what can be mended."""
    refusals = [error for error in errors if isinstance(error, NotAMember)]
    causes = list(dict.fromkeys([*map(str, refusals or errors), *([] if refusals else found)])) or ["nobody was found"]
    shown = [cause if len(cause) <= MAX_CAUSE_CHARS else f"{cause[:MAX_CAUSE_CHARS]}…" for cause in causes[:MAX_CAUSES]]
    more = [f"and {len(causes) - MAX_CAUSES} more"] if len(causes) > MAX_CAUSES else []
    hint = ["a node that was put out comes back with a new invite"] if refusals else []
    return "; ".join([*shown, *more, *hint])
