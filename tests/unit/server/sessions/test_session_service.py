"""What a server answers for its blocks: to whom, within which bounds, and with which refusals."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from shoal.engine.compute_stats import ComputeStats
from shoal.errors import (
    ChannelClosed,
    FingerprintMismatch,
    GrantExceeded,
    IdentityError,
    RecordError,
    ServerFull,
    SessionFenced,
    SessionLost,
    ShoalError,
    SpanError,
    UnsupportedModel,
)
from shoal.kv.pages import PAGE_TOKENS, PageAllocator
from shoal.protocol.messages import (
    Attach,
    Attached,
    Close,
    Describe,
    Description,
    GetStatus,
    Leaving,
    LinkGrant,
    Message,
    Open,
    Opened,
    ReceivedUpTo,
    Redirect,
    Refusal,
    ResumeFrom,
    Rewind,
    RowsFrame,
    Status,
)
from shoal.server.ledger import Ledger
from shoal.server.sessions.dial_limits import MAX_DIALS, SOURCE_DIALS
from shoal.server.sessions.hop_session import FIRST_ROWS_S, MADE_ROOM, HopSession, SessionTable
from shoal.server.sessions.session_service import MAX_LEASE_S, RETRY_ELSEWHERE_S, SessionService
from shoal.transport.frame_channel import FrameChannel
from shoal.types import PeerId, Span
from tests.unit.links.test_row_sender import messages
from tests.unit.server.sessions.test_hop_session import CLIENT, ROW, Compute
from tests.unit.server.spans import HELD, MODEL, Network, span_info
from tests.unit.transport.pipe import Pipe, turns

SESSION, SECRET = b"s" * 16, b"k" * 16
UPSTREAM = LinkGrant(1, CLIENT, b"t" * 16)


class PagedCompute(Compute):
    """A compute thread that grants pages; what it is told of failures is for the test."""

    def __init__(self, pages: PageAllocator) -> None:
        super().__init__()
        self.pages = pages
        self.stats = ComputeStats()
        self.queued_rows = 0
        self.failing: dict[str, Any] = {}
        self.rests = asyncio.Event()
        self.rests.set()

    async def open(self, session: str, client: str, span: Span, max_tokens: int, **options: Any) -> None:
        """ComputeThread: between two steps."""
        await self.rests.wait()
        self.pages.open(session, span, max_tokens)
        self.failing[session] = options["on_failure"]

    async def close(self, session: str) -> None:
        """ComputeThread."""
        self.pages.close(session)


class Peer(Pipe):
    """A channel from this node."""

    def __init__(self, peer: PeerId = CLIENT, host: str = "10.0.0.1") -> None:
        super().__init__()
        self.peer, self.host = peer, host

    @property
    def heard(self) -> list[Message]:
        """What came back so far."""
        return list(messages(self))


class Serving:
    """A service for blocks 2 to 6 of eight."""

    def __init__(self, max_sessions: int = 3) -> None:
        self.network = Network()
        pages = PageAllocator(64)
        self.compute = PagedCompute(pages)
        self.table = SessionTable(self.compute, pages, self.network.clock, max_sessions)  # type: ignore[arg-type]  # by shape
        self.ledger = Ledger(self.network.clock)
        self.service = SessionService(
            self.network.identity,
            span_info(),
            self.table,
            self.compute,  # type: ignore[arg-type]  # by its shape
            self.network.redirector,
            self.ledger,
        )
        self.tasks: list[asyncio.Task[None]] = []

    async def begin(self, first: Message, peer: PeerId = CLIENT, host: str = "10.0.0.1") -> Peer:
        """A channel that begins with this, served for a while; raises what ends it."""
        pipe = Peer(peer, host)
        task = asyncio.ensure_future(self.service.answers.begin(FrameChannel(pipe), first, b""))
        self.tasks.append(task)
        await turns()
        if task.done():
            await task
        return pipe

    async def end(self) -> None:
        """Close all sessions; channels end with them."""
        for session in self.table:
            await self.table.close(session)
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    @property
    def session(self) -> HopSession:
        """The one that was opened."""
        found = self.table.get(SESSION)
        assert found is not None
        return found


@pytest.fixture
async def serving() -> AsyncIterator[Serving]:
    """With its links' tasks."""
    made = Serving()
    async with made.network.redirector:
        yield made
        await made.end()


def opening(**changes: Any) -> Open:
    """A sound request, with changes."""
    return msgspec.structs.replace(Open(SESSION, 1, SECRET, MODEL.fingerprint, HELD, 50, UPSTREAM), **changes)


async def test_a_session_is_opened_within_what_is_given(serving: Serving) -> None:
    """The client hears of its limits, and of the weights of the blocks that it asked for."""
    client = await serving.begin(opening(span=Span(3, 5), lease_s=3600.0, row_codec="bf16"))
    [opened] = client.heard
    assert isinstance(opened, Opened)
    assert (opened.max_tokens, opened.lease_s, opened.journal_tokens) == (50, MAX_LEASE_S, 40)
    assert opened.weights == ("weights 3", "weights 4")
    assert (opened.epoch, opened.position) == (0, 0)
    assert serving.session.upstream == UPSTREAM
    assert serving.ledger.totals.sessions == 1
    client.arrive(Close())
    await turns()
    assert len(serving.table) == 0
    assert serving.table.pages.granted == 0


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"fingerprint": "e" * 32}, FingerprintMismatch),
        ({"span": Span(1, 4)}, SpanError),
        ({"span": Span(4, 7)}, SpanError),
        ({"span": Span(4, 4)}, SpanError),
        ({"span": Span(4, 9)}, SpanError),
        ({"row_codec": "fp16"}, UnsupportedModel),
        ({"max_tokens": 101}, GrantExceeded),
    ],
)
async def test_what_is_not_granted(serving: Serving, changes: dict[str, Any], error: type[ShoalError]) -> None:
    """Nothing is kept of it."""
    with pytest.raises(error):
        await serving.begin(opening(**changes))
    assert (len(serving.table), serving.ledger.totals.sessions) == (0, 0)


async def test_a_server_that_is_full(serving: Serving) -> None:
    """It says when the first lease ends."""
    for letter in b"abc":
        await serving.begin(opening(session=bytes([letter]) * 16, max_tokens=16))
    with pytest.raises(ServerFull, match="all 3 sessions") as caught:
        await serving.begin(opening())
    assert caught.value.retry_after == FIRST_ROWS_S


async def test_a_client_with_less_gets_room(serving: Serving) -> None:
    """A session of whoever has most ends, and its client is told why; both are asked what they have."""
    many = [await serving.begin(opening(session=bytes([letter]) * 16, max_tokens=16)) for letter in b"abc"]
    other = PeerId("ef" * 32)
    one = await serving.begin(opening(session=b"d" * 16, max_tokens=16), other, host="10.0.0.9")
    assert isinstance(one.heard[0], Opened)
    await turns()
    assert [isinstance(pipe.heard[-1], Refusal) for pipe in many] == [True, False, False]
    refusal = many[0].heard[-1]
    assert isinstance(refusal, Refusal)
    assert (refusal.code, refusal.message) == ("full", MADE_ROOM)
    asked = (await serving.begin(GetStatus(), other, host="10.0.0.9")).heard[0]
    assert isinstance(asked, Status)
    assert (asked.clients, asked.displaced, asked.your_sessions, asked.share_sessions) == (2, 1, 1, 1.5)
    assert asked.your_tokens == PAGE_TOKENS
    assert [load.sessions for load in asked.greediest] == [2, 1]
    assert (asked.dials, asked.your_dials, asked.max_dials, asked.share_dials) == (0, 0, MAX_DIALS, SOURCE_DIALS)
    assert asked.max_journal_bytes > 0


async def test_a_session_that_is_being_opened(serving: Serving) -> None:
    """A second order to open it is refused by name, and spoils nothing."""
    both = [asyncio.ensure_future(serving.begin(opening(max_tokens=16))) for _ in range(2)]
    first, second = await asyncio.gather(*both, return_exceptions=True)
    assert isinstance(first, Peer)
    assert isinstance(first.heard[0], Opened)
    assert isinstance(second, Peer | ServerFull)
    assert len(serving.table) == 1


async def test_opening_again_takes_the_session_up(serving: Serving) -> None:
    """A later process of the client may, with its secret and for the same blocks; others may not."""
    first = await serving.begin(opening())
    second = await serving.begin(opening(incarnation=2))
    assert first.ended
    assert isinstance(second.heard[0], Opened)
    assert serving.ledger.totals.sessions == 1
    for changes, error in (
        ({"incarnation": 1}, SessionFenced),
        ({"secret": b"x" * 16, "incarnation": 2}, ShoalError),
        ({"span": Span(2, 5), "incarnation": 2}, SpanError),
    ):
        with pytest.raises(error):
            await serving.begin(opening(**changes))
    assert not second.ended


async def test_who_is_refused_again_changes_nothing(serving: Serving) -> None:
    """A second request that is refused leaves the client that is there; one whose channel breaks leaves nobody behind."""
    first = await serving.begin(opening(upstream=LinkGrant(2, CLIENT, b"t" * 16)))
    serving.session.take(RowsFrame(0, 0, 1, 0), ROW, 0)
    with pytest.raises(RecordError):
        await serving.begin(opening())  # an older link
    assert not first.ended
    assert serving.session.attended
    for request in (opening(upstream=LinkGrant(3, CLIENT, b"t" * 16)), Attach("control", SESSION, 1, SECRET)):
        pipe = Peer()
        pipe.abort()
        with contextlib.suppress(ChannelClosed):
            await serving.service.answers.begin(FrameChannel(pipe), request, b"")
        assert not serving.session.attended


async def test_a_client_that_goes_away_while_its_session_opens(serving: Serving) -> None:
    """It was told of no session, so that none is kept for it; one that closes it before that is heard."""
    for goes in (Peer.abort, lambda client: client.arrive(Close())):
        serving.compute.rests.clear()
        client = await serving.begin(opening())
        assert client.heard == []
        goes(client)
        serving.compute.rests.set()
        await turns()
        assert (len(serving.table), serving.table.pages.granted) == (0, 0)


@pytest.mark.parametrize("attached", [False, True])
async def test_a_client_that_goes_away_before_its_first_rows(serving: Serving, attached: bool) -> None:
    """Its session ends with the channel, however that was begun; nothing is there to come back for."""
    client = await serving.begin(opening())
    if attached:
        first, client = client, await serving.begin(Attach("control", SESSION, 1, SECRET))
        assert first.ended
        assert len(serving.table) == 1
    client.abort()
    await turns()
    assert (len(serving.table), serving.table.pages.granted) == (0, 0)


async def test_a_client_that_goes_away_after_its_first_rows(serving: Serving) -> None:
    """The session lives on for its lease."""
    client = await serving.begin(opening())
    serving.session.take(RowsFrame(0, 0, 1, 0), ROW, 0)
    client.abort()
    await turns()
    assert not serving.session.attended
    assert isinstance((await serving.begin(Attach("control", SESSION, 1, SECRET))).heard[0], Attached)


async def test_a_server_that_leaves_takes_no_new_sessions(serving: Serving) -> None:
    """Those that it has are told, go on, and may come back; it can stay after all."""
    client = await serving.begin(opening())
    serving.service.leave(60.0)
    await turns()
    assert client.heard[-1] == Leaving(60.0)
    assert serving.service.leaving_at == 60.0
    with pytest.raises(ServerFull, match="leaving") as caught:
        await serving.begin(opening(session=b"n" * 16))
    assert caught.value.retry_after == RETRY_ELSEWHERE_S
    again = await serving.begin(Attach("control", SESSION, 1, SECRET))
    assert [type(one) for one in again.heard] == [Attached, Leaving]
    serving.service.stay()
    await turns()
    assert again.heard[-1] == Leaving(0.0, called_off=True)
    await serving.begin(opening(session=b"n" * 16))
    assert len(serving.table) == 2


async def test_its_load(serving: Serving) -> None:
    """Tokens through the whole span; what this server computed before it served these blocks counts too."""
    serving.ledger.add(rows=100, found_rows=10, moves=2)
    serving.compute.stats.count(2, 20, 20, 0.1, decoding=False, found_rows=4)
    serving.compute.queued_rows = 7
    before = serving.service.status()
    await serving.begin(opening(max_tokens=PAGE_TOKENS))
    [status] = (await serving.begin(GetStatus())).heard
    assert isinstance(status, Status)
    assert (status.sessions, status.max_sessions, status.queued_rows) == (1, 3, 7)
    assert status.total_tokens == 64 // 4 * PAGE_TOKENS
    assert before.free_tokens - status.free_tokens == PAGE_TOKENS
    assert (status.rows_computed, status.prefix_rows, status.moves) == (120, 14, 2)
    assert status.max_batch_sessions == 2


async def test_its_model(serving: Serving) -> None:
    """Described to who asks for this one or for any, not for another."""
    for fingerprint in ("", MODEL.fingerprint):
        [description] = (await serving.begin(Describe(fingerprint))).heard
        assert description == Description("tiny", MODEL.fingerprint, "someone/tiny", "main")
    with pytest.raises(FingerprintMismatch, match="tiny"):
        await serving.begin(Describe("e" * 32))


async def test_a_control_channel_is_attached_anew(serving: Serving) -> None:
    """It says how far the session has come."""
    await serving.begin(opening())
    serving.session.on_rewind(Rewind(1, 0, 0))
    client = await serving.begin(Attach("control", SESSION, 1, SECRET, epoch=0))
    assert client.heard == [Attached(1, 0, 0)]
    for changes, error in (({"session": b"n" * 16}, SessionLost), ({"token": b"x" * 16}, ShoalError)):
        with pytest.raises(error):
            await serving.begin(msgspec.structs.replace(Attach("control", SESSION, 1, SECRET), **changes))


async def test_a_link_is_attached_by_whom_it_was_granted_to(serving: Serving) -> None:
    """Rows that come on it are taken; every other node, token, generation or session hears the same."""
    await serving.begin(opening())
    feeding = Attach("send", SESSION, 0, UPSTREAM.token, generation=1)
    said = set()
    for peer, changes in (
        (PeerId("d" * 64), {}),
        (CLIENT, {"token": b"x" * 16}),
        (CLIENT, {"generation": 2}),
        (CLIENT, {"session": b"n" * 16}),
        (CLIENT, {"role": "receive"}),
    ):
        with pytest.raises(IdentityError) as caught:
            await serving.begin(msgspec.structs.replace(feeding, **changes), peer)
        said.add(str(caught.value).replace((b"n" * 16).hex()[:8], SESSION.hex()[:8]))
    assert len(said) == 1
    link = await serving.begin(feeding)
    assert link.heard == [ReceivedUpTo(0, 0)]
    link.arrive(ResumeFrom(0, 0))
    link.arrive(RowsFrame(0, 0, 1, 0), ROW)
    await turns()
    assert [rows.position for rows in serving.compute.rows] == [0]


async def test_the_client_fetches_the_output_itself(serving: Serving) -> None:
    """By the link that it ordered."""
    client = await serving.begin(opening())
    client.arrive(Redirect(LinkGrant(5, CLIENT, b"u" * 16)))
    await turns()
    output = await serving.begin(Attach("receive", SESSION, 0, b"u" * 16, generation=5))
    assert output.heard == [ResumeFrom(0, 0)]


async def test_rows_that_cannot_be_computed_end_the_session(serving: Serving) -> None:
    """The client is told why; the pages are free again."""
    client = await serving.begin(opening())
    serving.compute.failing[serving.session.key](RuntimeError("a mistake"))
    await turns()
    refusal = client.heard[-1]
    assert "RuntimeError: a mistake" in getattr(refusal, "message", "")
    assert (len(serving.table), serving.table.pages.granted) == (0, 0)
