"""What a server answers for the blocks that it holds (docs/wire.md)."""

from __future__ import annotations

import logging
from collections.abc import Callable

import msgspec

from shoal.clock import Clock
from shoal.engine.compute_thread import ComputeThread
from shoal.errors import (
    FingerprintMismatch,
    GrantExceeded,
    IdentityError,
    ServerFull,
    SpanError,
    UnsupportedModel,
)
from shoal.kv.pages import PAGE_TOKENS
from shoal.protocol import row_codec
from shoal.protocol.messages import (
    ATTACH,
    DESCRIBE,
    MAX_GREEDIEST,
    MAX_POSITION,
    MAX_ROWS,
    OPEN,
    STATUS,
    AccountLoad,
    Attach,
    Attached,
    Describe,
    Description,
    GetStatus,
    Leaving,
    Message,
    Numerics,
    Open,
    Opened,
    ReceivedUpTo,
    RowCodec,
    Status,
)
from shoal.server.accounts import Accounts
from shoal.server.answers import Answers
from shoal.server.ledger import Ledger
from shoal.server.sessions.control_channel import ControlChannel
from shoal.server.sessions.dial_limits import MAX_DIALS, SOURCE_DIALS
from shoal.server.sessions.hop_session import (
    MAX_BACKLOG_ROWS,
    NO_LOAD,
    HopSession,
    SessionGrant,
    SessionsLoad,
    SessionTable,
)
from shoal.server.sessions.redirector import Redirector
from shoal.swarm.identity import Identity
from shoal.transport.frame_channel import FrameChannel
from shoal.types import ModelSpec, PeerId, Span

MAX_LEASE_S = 300.0

MAX_SESSIONS = 1 << 16
"""More than any server takes."""

DRAIN_S = 60.0
"""How long a server that leaves gives its sessions to move."""

RETRY_ELSEWHERE_S = 60.0
"""What a server that leaves advises: by then it is gone."""


log = logging.getLogger("shoal.server")


def _nothing(frames: FrameChannel) -> None:
    """For a service whose channels nobody counts."""


class SpanInfo(msgspec.Struct, frozen=True):
    """What a server holds and is willing to give; `weights` digests each block, token and row counts are per session.

    `max_sessions`: for more of them the memory has no room.
    """

    model: ModelSpec
    span: Span
    numerics: Numerics
    weights: tuple[str, ...]
    source: str
    revision: str
    config_json: bytes
    max_tokens: int
    journal_tokens: int
    row_codecs: tuple[RowCodec, ...] = ("fp32",)
    max_sessions: int = MAX_SESSIONS
    backlog_rows: int = MAX_BACKLOG_ROWS
    frame_rows: int = MAX_ROWS


class SessionService:
    """Answers for the blocks that this server holds: what they are, their load, and sessions through them."""

    def __init__(
        self,
        identity: Identity,
        span_info: SpanInfo,
        sessions: SessionTable,
        compute: ComputeThread,
        redirector: Redirector,
        ledger: Ledger,
        accounts: Accounts | None = None,
        settled: Callable[[FrameChannel], None] = _nothing,
    ) -> None:
        """`settled` is told of each channel that has become a session's."""
        self._accounts = accounts or Accounts()
        self._settled = settled
        self._identity = identity
        self._holding = span_info
        self._sessions = sessions
        self._compute = compute
        self._redirector = redirector
        self._clock: Clock = redirector.clock
        self._ledger = ledger
        self._leaving_at: float | None = None
        self.answers = Answers()
        self.answers.answer(DESCRIBE, self._describe)
        self.answers.serve(STATUS, self._status)
        self.answers.serve(OPEN, self._open)
        self.answers.serve(ATTACH, self._attach)

    @property
    def leaving_at(self) -> float | None:
        """When the sessions must have left (monotonic seconds); None while new ones are taken."""
        return self._leaving_at

    def leave(self, deadline_s: float) -> None:
        """Take no new sessions, and tell the clients of those that are there."""
        self._leaving_at = self._clock.monotonic() + deadline_s
        for session in self._sessions:
            session.report(Leaving(deadline_s))

    def stay(self) -> None:
        """Take sessions again; those that have not moved need not."""
        self._leaving_at = None
        for session in self._sessions:
            session.report(Leaving(0.0, called_off=True))

    async def _status(self, frames: FrameChannel, request: GetStatus, _: bytes) -> None:
        """The load, and what whoever asks has and may have."""
        account = self._accounts.of(frames.peer, frames.network)
        equal = self._sessions.shares.use(account).equal
        has = self._account_load(self._sessions.loads().get(account.name, NO_LOAD))
        await frames.send(
            msgspec.structs.replace(
                self.status(),
                your_sessions=has.sessions,
                your_tokens=has.tokens,
                your_queued_rows=has.queued_rows,
                your_journal_bytes=has.journal_bytes,
                your_dials=self._redirector.dials.made_for(frames.source),
                share_sessions=equal.sessions,
                share_tokens=self._tokens(equal.pages),
                share_dials=SOURCE_DIALS,
            )
        )

    def _tokens(self, pages: float) -> int:
        """Pages as tokens through the whole span."""
        return int(pages * PAGE_TOKENS / len(self._holding.span))

    def _account_load(self, load: SessionsLoad) -> AccountLoad:
        return AccountLoad(load.sessions, self._tokens(load.pages), load.queued_rows, load.journal_bytes)

    def status(self) -> Status:
        """This server's load now."""
        stats, pages, totals = self._compute.stats, self._sessions.pages, self._ledger.totals
        held, shares, dials = self._holding, self._sessions.shares, self._redirector.dials
        loads = self._sessions.loads()
        row_bytes = row_codec.row_bytes("fp32", held.model.hidden_size)
        return Status(
            sessions=len(self._sessions),
            max_sessions=self._sessions.max_sessions,
            queued_rows=self._compute.queued_rows,
            free_tokens=self._tokens(pages.capacity - pages.granted),
            total_tokens=self._tokens(pages.capacity),
            decode_rows_per_s=stats.decode_rows_per_s,
            prefill_rows_per_s=stats.prefill_rows_per_s,
            uptime_s=self._ledger.uptime_s,
            max_batch_sessions=stats.max_batch_sessions,
            exact=held.numerics.exact,
            prefix_rows=totals.found_rows + stats.found_rows,
            rows_computed=totals.rows + stats.rows,
            sessions_opened=totals.sessions,
            moves=totals.moves,
            clients=shares.num_accounts,
            displaced=shares.displaced,
            journal_bytes=sum(load.journal_bytes for load in loads.values()),
            max_journal_bytes=held.journal_tokens * row_bytes * self._sessions.max_sessions,
            dials=dials.made,
            max_dials=MAX_DIALS,
            greediest=tuple(
                self._account_load(loads.get(account, NO_LOAD)) for account in shares.greediest(MAX_GREEDIEST)
            ),
        )

    def _describe(self, message: Describe, peer: PeerId) -> tuple[Description, bytes]:
        model = self._holding.model
        if message.fingerprint not in ("", model.fingerprint):
            raise FingerprintMismatch(f"this server holds {model.name} as {model.fingerprint}")
        description = Description(model.name, model.fingerprint, self._holding.source, self._holding.revision)
        return description, self._holding.config_json

    async def _open(self, frames: FrameChannel, message: Open, _: bytes) -> None:
        session = self._sessions.get(message.session)
        if session is None and self.leaving_at is not None:
            raise ServerFull("this server is leaving and takes no new sessions", retry_after=RETRY_ELSEWHERE_S)
        if session is None:
            account = self._accounts.of(frames.peer, frames.network)
            session = await self._sessions.open(self._terms(message), frames.peer, self._failed, account)
            self._ledger.add(sessions=1)
            log.debug("session %s of %s is open over blocks %s", session.key[:8], frames.peer[:8], message.span)
        session = self._sessions.find(message.session, message.secret, message.incarnation, frames.peer)
        if session.terms.span != message.span:
            raise SpanError(f"session {session.key[:8]} was opened for blocks {session.terms.span}")
        control = ControlChannel(frames, session, self._identity, self._redirector)
        self._settled(frames)
        first = message.span.start - self._holding.span.start
        weights = self._holding.weights[first : first + len(message.span)]
        await self._control(control, session, control.opened(message.upstream, self._holding.numerics, weights))

    def _terms(self, message: Open) -> SessionGrant:
        held = self._holding
        if message.fingerprint != held.model.fingerprint:
            raise FingerprintMismatch(
                f"this server holds {held.model.name} with fingerprint {held.model.fingerprint}, not {message.fingerprint}"
            )
        message.span.check(held.model.num_blocks)
        if not held.span.covers(message.span):
            raise SpanError(f"this server holds blocks {held.span}, not {message.span}")
        if message.row_codec not in held.row_codecs:
            raise UnsupportedModel(f"rows as {message.row_codec} are not proven for {held.model.name}")
        if message.max_tokens > held.max_tokens:
            raise GrantExceeded(f"{message.max_tokens} tokens asked for; at most {held.max_tokens} are granted here")
        most_tokens = self._sessions.pages.capacity // max(1, len(message.span)) * PAGE_TOKENS
        if message.max_tokens > most_tokens:
            text = f"the whole cache has room for {most_tokens} through blocks {message.span}"
            raise GrantExceeded(f"{message.max_tokens} tokens asked for; {text}")
        return SessionGrant(
            message.session,
            message.secret,
            message.span,
            message.max_tokens,
            min(message.lease_s, MAX_LEASE_S),
            held.model.hidden_size,
            message.row_codec,
            min(held.journal_tokens, message.max_tokens),
            message.follow,
            held.backlog_rows,
            held.frame_rows,
        )

    def _failed(self, session: HopSession, error: Exception) -> None:
        session.fail(error)
        self._redirector.spawn(self._sessions.close(session))

    async def _control(self, control: ControlChannel, session: HopSession, answer: Opened | Attached) -> None:
        first: list[Message] = [answer]
        if self.leaving_at is not None:
            first.append(Leaving(max(0.0, self.leaving_at - self._clock.monotonic())))
        closed = False
        try:
            closed = await control.serve(*first)
        finally:
            if closed or session.abandoned:
                await self._sessions.close(session)

    async def _attach(self, frames: FrameChannel, message: Attach, _: bytes) -> None:
        if message.role == "control":
            session = self._sessions.find(message.session, message.token, message.incarnation, frames.peer)
            control = ControlChannel(frames, session, self._identity, self._redirector)
            self._settled(frames)
            base = session.log.sender.least(message.epoch)
            position = session.receiver.position
            attached = Attached(session.receiver.epoch, position, MAX_POSITION if base is None else base)
            await self._control(control, session, attached)
        elif message.role == "send":
            session = self._linked(message)
            if session.upstream is None or not session.admits(session.upstream, frames.peer, message):
                raise self._no_link(message)
            self._settled(frames)
            frames.allow_link(session.max_frame_bytes)
            await frames.send(session.row_receiver.attach(frames))
            await session.row_receiver.serve(frames)
        else:
            session = self._linked(message)
            for link in session.outgoing.values():
                if session.admits(link.grant, frames.peer, message):
                    self._settled(frames)
                    await session.serve_link(link, frames, ReceivedUpTo(message.epoch, message.position))
                    return
            raise self._no_link(message)

    def _linked(self, message: Attach) -> HopSession:
        """The session that is named; whether the link was granted to this peer is for the caller to see."""
        session = self._sessions.get(message.session)
        if session is None:
            raise self._no_link(message)
        return session

    @staticmethod
    def _no_link(message: Attach) -> IdentityError:
        """The same for a session that is not there as for one that is another's."""
        return IdentityError(f"no link of session {message.session.hex()[:8]} is granted to this node")
