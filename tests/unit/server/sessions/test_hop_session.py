"""A session's stream at one hop: rows in, rows out, and when its link is held back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import msgspec
import pytest
import pytest_asyncio

from shoal.errors import GrantExceeded, ProtocolError, RecordError, SessionFenced
from shoal.links.link import Link, LinkKey
from shoal.protocol.messages import HopTrace, LinkGrant, LinkState, ReceivedUpTo, ResumeFrom, Rewind, RowsFrame
from shoal.protocol.rows import Rows
from shoal.server.sessions.hop_session import MAX_NEWS, HopSession, SessionGrant
from shoal.transport.frame_channel import FrameChannel
from shoal.types import PeerId, Span
from tests.support.virtual_clock import VirtualClock
from tests.unit.links.test_row_sender import messages
from tests.unit.transport.pipe import Pipe, turns

ME, NEXT, CLIENT = (PeerId(letter * 64) for letter in "abc")
ROW = bytes(8)


class Compute:
    """A compute thread that computes when the test says so."""

    def __init__(self) -> None:
        self.rows: list[Rows] = []
        self.orders: list[tuple[str, object]] = []

    def submit(self, rows: Rows) -> None:
        """ComputeThread."""
        self.rows.append(rows)

    def rewind(self, session: str, position: int) -> None:
        """ComputeThread."""
        self.orders.append(("rewind", position))
        self.rows = [rows for rows in self.rows if rows.position < position]

    def set_background(self, session: str, background: bool) -> None:
        """ComputeThread."""
        self.orders.append(("background", background))


class Hop:
    """A session at a hop, fed through a pipe, whose output goes into another one."""

    def __init__(self, journal_tokens: int = 100, follow: bool = False) -> None:
        self.compute = Compute()
        grant = SessionGrant(b"s" * 16, b"k" * 16, Span(0, 2), 50, 30.0, 2, "fp32", journal_tokens, follow)
        self.clock = VirtualClock()
        self.session = HopSession(grant, self.compute, self.clock, None)  # type: ignore[arg-type]
        self.incoming, self.outgoing = Pipe(), Pipe()
        self.tasks: list[asyncio.Task[None]] = []

    async def feed(self) -> None:
        """Attach the one before it."""
        frames = FrameChannel(self.incoming)
        self.session.row_receiver.attach(frames)
        self.tasks.append(asyncio.ensure_future(self.session.row_receiver.serve(frames)))
        self.incoming.arrive(ResumeFrom(0, 0))
        await turns()

    async def link(self, generation: int = 1, follows: bool = False) -> None:
        """Attach the one behind it, as the client orders."""
        link: Link[PeerId] = Link(LinkKey(ME, NEXT, follows), generation, self.clock, self.session.report)
        made = self.session.send_along(link, LinkGrant(generation, NEXT, b"t" * 16), elide=False)
        self.outgoing = Pipe()
        frames = FrameChannel(self.outgoing)
        self.tasks.append(asyncio.ensure_future(self.session.serve_link(made, frames, ReceivedUpTo(0, 0))))
        await turns()

    def rows(self, position: int, count: int = 1) -> None:
        """Rows come in."""
        self.incoming.arrive(RowsFrame(0, position, count, 0), ROW * count)

    def compute_one(self) -> None:
        """The first rows in the queue are computed."""
        self.session.on_output(self.compute.rows.pop(0), HopTrace(1.0, 0.0, 0.0))

    async def end(self) -> None:
        """Drop both links."""
        self.session.close()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    @property
    def sent(self) -> list[int]:
        """Positions of the frames that went on."""
        return [message.position for message in messages(self.outgoing) if isinstance(message, RowsFrame)]


@pytest_asyncio.fixture
async def hop() -> AsyncIterator[Hop]:
    """Fed and linked."""
    made = Hop()
    await made.feed()
    await made.link()
    yield made
    await made.end()


async def test_rows_go_through_in_the_calls_that_bring_them(hop: Hop) -> None:
    """To the compute thread when they arrive, to the next hop when they are computed, with one more trace."""
    hop.rows(0, count=2)
    assert [(rows.position, rows.num_rows) for rows in hop.compute.rows] == [(0, 2)]
    hop.compute_one()
    assert hop.sent == [0]
    (frame,) = [message for message in messages(hop.outgoing) if isinstance(message, RowsFrame)]
    assert frame.trace == (HopTrace(1.0, 0.0, 0.0),)


async def test_a_backlog_holds_the_link_back(hop: Hop) -> None:
    """Beyond the rows granted that wait to be computed nothing is taken until some are; then all come in order."""
    hop.session.terms = msgspec.structs.replace(hop.session.terms, backlog_rows=2)
    for position in range(5):
        hop.rows(position)
    assert [rows.position for rows in hop.compute.rows] == [0, 1, 2]
    hop.compute_one()
    await turns()
    assert [rows.position for rows in hop.compute.rows] == [1, 2, 3]
    while hop.compute.rows:
        hop.compute_one()
        await turns()
    assert hop.sent == [0, 1, 2, 3, 4]


async def test_rows_that_are_not_sent_hold_the_link_back_too(hop: Hop) -> None:
    """Computed rows that the next hop does not take count, until it takes them."""
    hop.session.terms = msgspec.structs.replace(hop.session.terms, backlog_rows=2)
    hop.outgoing.room.clear()
    for position in range(4):
        hop.rows(position)
        if hop.compute.rows:
            hop.compute_one()
    await turns()
    assert (hop.session.log.sender.end, hop.compute.rows, hop.sent) == (3, [], [])
    hop.outgoing.room.set()
    await turns()
    assert hop.sent == [0, 1, 2]
    assert [rows.position for rows in hop.compute.rows] == [3]


async def test_a_rewind_frees_the_backlog(hop: Hop) -> None:
    """The rows that wait are gone, at the compute thread too, and the link is read again."""
    hop.session.terms = msgspec.structs.replace(hop.session.terms, backlog_rows=2)
    for position in range(5):
        hop.rows(position)
    hop.session.on_rewind(Rewind(1, 1, 0))
    assert ("rewind", 1) in hop.compute.orders
    await turns()
    hop.incoming.arrive(RowsFrame(1, 1, 1, 0), ROW)
    assert [rows.position for rows in hop.compute.rows] == [0, 1]


async def test_a_follower_keeps_its_rows_until_it_has_a_next_hop() -> None:
    """What it computed is kept within its budget; when it takes over, the next hop gets what it lacks."""
    hop = Hop(journal_tokens=10, follow=True)
    await hop.feed()
    for position in range(3):
        hop.rows(position)
        hop.compute_one()
    assert hop.session.log.journal.unsent == 0
    await hop.link()
    assert hop.sent == [0, 1, 2]
    assert hop.compute.orders == [("background", False)]
    hop.session.stand_by()
    assert hop.outgoing.ended
    assert hop.compute.orders[-1] == ("background", True)


@pytest.mark.parametrize(
    ("rows", "payload", "error"),
    [
        (RowsFrame(0, 0, 2, 0), ROW, ProtocolError),
        (RowsFrame(0, 0, 1, 0, elided=1), b"", ProtocolError),
        (RowsFrame(0, 49, 2, 0), ROW * 2, GrantExceeded),
    ],
)
def test_frames_beyond_the_form_or_the_grant(rows: RowsFrame, payload: bytes, error: type[Exception]) -> None:
    """Refused before anything changes."""
    with pytest.raises(error):
        Hop().session.check(rows, payload)


async def test_only_a_newer_link_may_feed_it(hop: Hop) -> None:
    """A newer grant drops the present link, the same one does not, an older one is refused."""
    first, second = LinkGrant(1, ME, b"t" * 16), LinkGrant(2, NEXT, b"u" * 16)
    hop.session.admit(first)
    assert hop.incoming.ended
    hop.incoming = Pipe()
    await hop.feed()
    hop.session.admit(first)
    assert not hop.incoming.ended
    hop.session.admit(second)
    assert hop.incoming.ended
    with pytest.raises(RecordError):
        hop.session.admit(first)


def test_a_later_process_fences_an_earlier_one() -> None:
    """The same or a later one may take the session up."""
    session = Hop().session
    session.take_up(1, CLIENT)
    session.take_up(1, CLIENT)
    with pytest.raises(SessionFenced):
        session.take_up(0, CLIENT)
    assert (session.incarnation, session.owner) == (1, CLIENT)


async def test_news_reach_the_control_channel_that_is_up() -> None:
    """None are kept without one, or beyond a bound; a newer channel ends an older one."""
    session = Hop().session
    session.report(LinkState(1, "up"))
    one, two = Pipe(), Pipe()
    first, second = FrameChannel(one), FrameChannel(two)
    news = session.attend(first)
    assert session.attended
    for _ in range(MAX_NEWS + 5):
        session.report(LinkState(2, "up"))
    assert news.qsize() == MAX_NEWS
    session.attend(second)
    assert one.ended
    session.unattend(first)
    assert session.attended
    session.unattend(second)
    assert not session.attended


async def test_what_its_journal_dropped_is_told() -> None:
    """With the generation of the link that lacks the rows."""
    hop = Hop(journal_tokens=0)
    news = hop.session.attend(FrameChannel(Pipe()))
    await hop.feed()
    await hop.link(generation=7)
    for position in range(2):
        hop.rows(position)
        hop.compute_one()
    hop.outgoing.arrive(ReceivedUpTo(0, 0))
    told = news.get_nowait()
    assert isinstance(told, LinkState)
    assert (told.generation, told.state, told.position) == (7, "gone", 0)


async def test_closing_cuts_every_link(hop: Hop) -> None:
    """Both ways, and says so."""
    hop.session.close()
    await turns()
    assert hop.session.closed.is_set()
    assert hop.incoming.ended
    assert hop.outgoing.ended
    assert hop.session.outgoing == {}
