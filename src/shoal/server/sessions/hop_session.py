"""One session at one hop: rows in, compute, rows out; and the table of all of them."""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import Callable, Iterator
from typing import NamedTuple

import msgspec

from shoal.clock import Clock
from shoal.engine.compute_thread import ComputeThread
from shoal.errors import GrantExceeded, RecordError, ServerFull, SessionBusy, SessionFenced, SessionLost, ShoalError
from shoal.kv.pages import PageAllocator, pages_for
from shoal.links.link import Link
from shoal.links.row_log import RowLog
from shoal.links.row_receiver import RowReceiver
from shoal.links.row_sender import RowSender, Throttle
from shoal.model.row_tensors import decode_tensor, encode_tensor
from shoal.protocol.journal import Journal, RowChunk
from shoal.protocol.messages import (
    MAX_ROWS,
    Attach,
    HopTrace,
    Leaving,
    LinkGrant,
    LinkState,
    Pong,
    ReceivedUpTo,
    Rewind,
    RowCodec,
    RowsFrame,
)
from shoal.protocol.row_stream import Receiver
from shoal.protocol.rows import RowForm, Rows
from shoal.server.accounts import Account
from shoal.server.sessions.shares import Amount, Shares
from shoal.transport.frame_channel import FrameChannel
from shoal.types import PeerId, Span

MAX_BACKLOG_ROWS = 2048
"""The most rows of one session that wait to be computed or sent; beyond what it was granted its link is not read."""

FIRST_ROWS_S = 10.0
"""How long a session outlives the last ping of its client before any rows have come, however long its lease is."""

MADE_ROOM = "this session made room for a client that has less of this server"

MAX_NEWS = 64
"""News for a client that were not sent yet; more are not kept."""


log = logging.getLogger("shoal.server")


class SessionGrant(msgspec.Struct, frozen=True):
    """What was granted to a session."""

    session: bytes
    secret: bytes
    span: Span
    max_tokens: int
    lease_s: float
    hidden_size: int
    row_codec: RowCodec
    journal_tokens: int
    follow: bool = False
    backlog_rows: int = MAX_BACKLOG_ROWS
    frame_rows: int = MAX_ROWS


class OutgoingLink(NamedTuple):
    """A link out of a hop as the client granted it; `elide` leaves out rows that the client does not need."""

    link: Link[PeerId]
    grant: LinkGrant
    sender: RowSender
    elide: bool

    def cut(self) -> None:
        """Drop the channel, and stop dialling."""
        self.sender.detach()
        self.link.cut()


class SessionsLoad(NamedTuple):
    """What sessions have: how many there are, their pages, rows that wait, bytes kept for sending."""

    sessions: int
    pages: int
    queued_rows: int
    journal_bytes: int


NO_LOAD = SessionsLoad(0, 0, 0, 0)


class HopSession:
    """A session's stream at this hop: the sink of the rows that come in, and the log of those that go out.

    Everything runs in the event loop but the steps themselves.
    """

    def __init__(
        self,
        terms: SessionGrant,
        compute: ComputeThread,
        clock: Clock,
        throttle: Throttle | None,
        shares: Shares | None = None,
    ) -> None:
        self.terms = terms
        self.key = terms.session.hex()
        self.incarnation = 0
        self.owner: PeerId | None = None
        self.upstream: LinkGrant | None = None
        self.failure: Exception | None = None
        self.closed = asyncio.Event()
        self.receiver = Receiver()
        self.row_receiver = RowReceiver(self.receiver, self)
        self._form = RowForm(terms.row_codec, terms.hidden_size)
        self.log = RowLog(Journal(self._form.row_bytes, terms.journal_tokens), throttle, self.row_receiver.resume)
        self.log.journal.stand_by(terms.follow)
        self.outgoing: dict[bool, OutgoingLink] = {}
        self._follower = self.log.add_sender()
        self._control: FrameChannel | None = None
        self._news: asyncio.Queue[LinkState | Leaving] | None = None
        self._compute = compute
        self._clock = clock
        self._shares = shares
        self._has_had_rows = False
        self.expires_at = 0.0
        self.renew()

    def renew(self) -> None:
        """The client was heard: its lease begins anew. Before the first rows it is short."""
        lease_s = self.terms.lease_s if self._has_had_rows else min(self.terms.lease_s, FIRST_ROWS_S)
        self.expires_at = self._clock.monotonic() + lease_s

    def take_up(self, incarnation: int, owner: PeerId) -> None:
        """A process of the client has the session now; `owner` is its node. Raises SessionFenced for an older process."""
        if incarnation < self.incarnation:
            raise SessionFenced(f"session {self.key[:8]} was taken up by a later process of its client")
        self.incarnation, self.owner = incarnation, owner

    def admit(self, grant: LinkGrant) -> None:
        """The client says who feeds this hop from now on; raises RecordError for a link older than the present one."""
        if self.upstream is not None and grant.generation < self.upstream.generation:
            raise RecordError(f"link generation {grant.generation} is older than {self.upstream.generation}")
        if grant != self.upstream:
            self.row_receiver.detach()
            self.upstream = grant

    def fail(self, error: Exception) -> None:
        """Its rows cannot be computed any more; the client is told why when the session closes."""
        self.failure = error

    @property
    def attended(self) -> bool:
        """Whether the client's control channel is up."""
        return self._news is not None

    @property
    def abandoned(self) -> bool:
        """Whether the client is gone before any rows have come: there is nothing to come back for."""
        return not self.attended and not self._has_had_rows

    def attend(self, control: FrameChannel) -> asyncio.Queue[LinkState | Leaving]:
        """The client's control channel, which ends an older one or a fenced incarnation's; returns the news for it."""
        if self._control is not None:
            self._control.abort()
        self._control, self._news = control, asyncio.Queue(MAX_NEWS)
        if self._shares is not None:
            self._shares.attend(self.terms.session, True)
        return self._news

    def unattend(self, control: FrameChannel) -> None:
        """This control channel has ended."""
        if self._control is control:
            self._control = self._news = None
            if self._shares is not None:
                self._shares.attend(self.terms.session, False)

    def report(self, news: LinkState | Leaving) -> None:
        """Tell the client, if its control channel is up."""
        if self._news is not None and not self._news.full():  # links say again what they are
            self._news.put_nowait(news)

    def send_along(self, link: Link[PeerId], grant: LinkGrant, elide: bool) -> OutgoingLink:
        """This link replaces the one of its kind. A session that stood by does so no longer when it has a next hop."""
        follows = link.key.follows
        self.cut_outgoing(follows)
        sender = self._follower if follows else self.log.next
        self.outgoing[follows] = made = OutgoingLink(link, grant, sender, elide)
        if not follows and self.log.journal.standing_by:
            self.log.journal.stand_by(False)
            self._compute.set_background(self.key, False)
        return made

    def cut_outgoing(self, follows: bool) -> None:
        """End the link to the next hop, or to a follower, if there is one."""
        link = self.outgoing.pop(follows, None)
        if link is not None:
            link.cut()

    async def serve_link(self, link: OutgoingLink, frames: FrameChannel, have: ReceivedUpTo | None = None) -> None:
        """Send on a link's channel until it breaks; raises what `RowSender.serve` raises."""

        def dropped(position: int) -> None:
            text = "the journal has dropped these rows"
            self.report(LinkState(link.grant.generation, "gone", text, position))

        await link.sender.serve(frames, have, link.elide, dropped)

    def stand_by(self) -> None:
        """Another hop takes its place; its output is kept, and no hop is to get it for now."""
        self.cut_outgoing(follows=False)
        self.log.journal.stand_by(True)
        self.row_receiver.resume()
        self._compute.set_background(self.key, True)

    def pong(self, id_: int, received_at: float) -> Pong:
        """The answer to a ping: how far this hop has come."""
        stats, receiver = self._compute.stats, self.receiver
        computed = self.log.sender.end
        now = self._clock.wall()
        return Pong(id_, received_at, now, receiver.epoch, receiver.position, computed, stats.steps, stats.step_s)

    def admits(self, grant: LinkGrant, peer: PeerId, message: Attach) -> bool:
        """Whether a node that attaches is the one that a link was granted to."""
        same_token = hmac.compare_digest(grant.token, message.token)
        return same_token and grant.peer == peer and grant.generation == message.generation

    @property
    def max_frame_bytes(self) -> int:
        """The largest payload that a frame of this session may have."""
        return min(self.terms.max_tokens, self.terms.frame_rows) * self._form.row_bytes

    def check(self, rows: RowsFrame, payload: bytes) -> None:
        """RowSink: the frame's form and the grant."""
        self._form.check_for_hop(rows, payload)
        if rows.position + rows.count > self.terms.max_tokens:
            raise GrantExceeded(
                f"rows {rows.position}:{rows.position + rows.count} are beyond the {self.terms.max_tokens} granted"
            )

    def truncate(self, position: int) -> None:
        """RowSink: rows from `position` on are void, and so is what was computed from them."""
        self._compute.rewind(self.key, position)
        self.log.rewind(self.receiver.epoch, position)

    @property
    def load(self) -> SessionsLoad:
        """What it has of the server."""
        pages = len(self.terms.span) * pages_for(self.terms.max_tokens)
        return SessionsLoad(1, pages, self._waiting_rows, self.log.journal.size_bytes)

    @property
    def _waiting_rows(self) -> int:
        """Rows that have come and were not computed yet."""
        return self.receiver.position - self.log.sender.end

    @property
    def full(self) -> bool:
        """RowSink: too many rows are waiting to be computed or sent."""
        return self._waiting_rows + self.log.journal.unsent > self.terms.backlog_rows

    def take(self, rows: RowsFrame, payload: bytes, skip: int) -> None:
        """RowSink: hand new rows to the compute thread."""
        received_at = self._clock.wall()
        if self._shares is not None:
            self._shares.computes(self.terms.session)
        if not self._has_had_rows:
            self._has_had_rows = True
            self.renew()
        hidden_states = decode_tensor(payload, rows.count, self.terms.hidden_size, self.terms.row_codec)
        new = Rows(self.key, rows.position, hidden_states, rows, received_at)
        self._compute.submit(new.starting_at(rows.position + skip) if skip else new)

    def on_rewind(self, message: Rewind) -> None:
        """The client's word on the control channel."""
        position = self.receiver.on_rewind(message)
        if position is not None:
            self.truncate(position)

    def on_output(self, rows: Rows, trace: HopTrace) -> None:
        """Rows were computed: keep them and send them on."""
        data = encode_tensor(rows.hidden_states, self.terms.row_codec)
        before = rows.frame.trace if rows.frame is not None else ()
        self.log.append(RowChunk(rows.position, rows.num_rows, data, rows.needed_from, (*before, trace)))
        self.row_receiver.resume()

    def close(self) -> None:
        """Cut all links; `closed` is set. Harmless when closed."""
        self.closed.set()
        self.row_receiver.detach()
        for follows in list(self.outgoing):
            self.cut_outgoing(follows)
        self.log.journal.clear()  # the session itself may be garbage that nobody collects for a long time


class SessionTable:
    """The sessions of a server, by id; opens within limits, finds, expires."""

    def __init__(
        self,
        compute: ComputeThread,
        pages: PageAllocator,
        clock: Clock,
        max_sessions: int,
        throttle: Throttle | None = None,
    ) -> None:
        self.max_sessions = max_sessions
        self.pages = pages
        self.shares = Shares(Amount(max_sessions, pages.capacity), clock)
        self._compute = compute
        self._clock = clock
        self._throttle = throttle
        self._sessions: dict[bytes, HopSession] = {}
        self._opening: set[bytes] = set()

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[HopSession]:
        return iter(list(self._sessions.values()))

    def loads(self) -> dict[str, SessionsLoad]:
        """What the sessions of each account have."""
        loads: dict[str, SessionsLoad] = {}
        for one in self:
            account, own = self.shares.account_of(one.terms.session), one.load
            loads[account] = SessionsLoad(*map(sum, zip(loads.get(account, NO_LOAD), own, strict=True)))
        return loads

    def get(self, session: bytes) -> HopSession | None:
        """The session of this id, if there is one."""
        return self._sessions.get(session)

    def find(self, session: bytes, secret: bytes, incarnation: int, owner: PeerId) -> HopSession:
        """The session that this secret belongs to, taken up by `owner`; a higher incarnation takes it over.

        Raises SessionLost for an unknown session or a wrong secret, SessionFenced for an incarnation that is over.
        """
        found = self._sessions.get(session)
        if found is None or not hmac.compare_digest(found.terms.secret, secret):
            raise SessionLost(f"no session {session.hex()[:8]} here: its lease ran out, or the server is new")
        found.take_up(incarnation, owner)
        return found

    async def open(
        self,
        terms: SessionGrant,
        client: PeerId,
        on_failure: Callable[[HopSession, Exception], None],
        account: Account | None = None,
    ) -> HopSession:
        """A new session of a client, whose key is its account unless another is given; others may make room for it.

        Raises ServerFull when there is none, SessionBusy while it is being opened.
        """
        account = account or Account(client)
        if terms.session in self._opening or terms.session in self._sessions:
            raise SessionBusy(f"session {terms.session.hex()[:8]} is being opened already")
        session = HopSession(terms, self._compute, self._clock, self._throttle, self.shares)
        self._opening.add(terms.session)
        try:
            await self._make_room(terms, client, account)
            await self._compute.open(
                session.key,
                client,
                terms.span,
                terms.max_tokens,
                on_output=session.on_output,
                on_failure=lambda error: on_failure(session, error),
                background=terms.follow,
                turn=self.shares.turn(terms.session, account),
            )
            if terms.session not in self.shares:
                await self._compute.close(session.key)
                raise ServerFull(MADE_ROOM)
        except BaseException:
            self.shares.close(terms.session)
            raise
        finally:
            self._opening.discard(terms.session)
        self._sessions[terms.session] = session
        return session

    async def _make_room(self, terms: SessionGrant, client: PeerId, account: Account) -> None:
        """Count a session, and close those that make room for it. Raises ServerFull."""
        pages = len(terms.span) * pages_for(terms.max_tokens)
        try:
            leaving = self.shares.open(terms.session, account, client, pages)
        except ServerFull as error:
            raise ServerFull(str(error), retry_after=self._soonest_expiry_s()) from error
        for one in leaving:
            session = self._sessions.get(one)
            if session is not None:  # else it is being opened, and will find out
                log.info("session %s makes room for %s", session.key[:8], account.name)
                session.fail(ServerFull(MADE_ROOM))
                await self.close(session)

    def _soonest_expiry_s(self) -> float:
        now = self._clock.monotonic()
        return max(0.5, min((session.expires_at - now for session in self), default=1.0))

    async def close(self, session: HopSession) -> None:
        """End a session and free its pages; closing twice is harmless."""
        if self._sessions.pop(session.terms.session, None) is not None:
            self.shares.close(session.terms.session)
            session.close()
            await self._compute.close(session.key)
            log.debug("session %s has ended", session.key[:8])

    async def expire(self) -> int:
        """Close the sessions whose lease has run out; returns how many."""
        now = self._clock.monotonic()
        expired = [session for session in self if session.expires_at <= now]
        for session in expired:
            await self.close(session)
        return len(expired)


def as_shoal_error(error: Exception) -> ShoalError:
    """A failure of this server, as something that can be told to a peer."""
    return (
        error if isinstance(error, ShoalError) else ShoalError(f"this server failed: {type(error).__name__}: {error}")
    )
