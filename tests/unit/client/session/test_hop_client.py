"""A session's control channel, against a server that a test plays."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

import msgspec
import pytest

from shoal.client.session.hop_client import KEPT_NEWS, MAX_BREAKS, ORDER_S, TICK_S, HopClient, SessionCredentials
from shoal.errors import DialError, NetworkError, ProtocolError, RecordError, ServerFull, SessionFenced, WrongRows
from shoal.protocol.messages import (
    Admit,
    Admitted,
    Attach,
    Attached,
    Close,
    Leaving,
    LinkGrant,
    LinkState,
    Message,
    Numerics,
    Open,
    Opened,
    Ping,
    Pong,
    Redirect,
    Rewind,
)
from shoal.protocol.refusals import refusal
from shoal.protocol.row_stream import Sender
from shoal.swarm.directory.records import Acceptance, sign_acceptance
from shoal.swarm.identity import Identity
from shoal.transport.channel import Channel
from shoal.transport.frame_channel import FrameChannel
from shoal.transport.memory_transport import MemoryChannel
from shoal.transport.token_bucket import TokenBucket
from shoal.types import Hop, PeerId, Span
from tests.records import FINGERPRINT, signed_record
from tests.support.any_message import ANY
from tests.support.virtual_clock import VirtualClock

SERVER, ME = Identity.generate(), Identity.generate()
ALL = Span(0, 12)
KEYS = SessionCredentials(b"s" * 16, b"k" * 16, 2)
GRANT = LinkGrant(1, ME.peer, bytes(16))
NUMERICS = Numerics("torch", "probe", "float32")
OPENED = Opened(16, 30.0, 0, 0, 16, NUMERICS, b"first", ("w",) * 12)
OPEN = Open(KEYS.session, KEYS.incarnation, KEYS.secret, FINGERPRINT, ALL, 16, GRANT)


class Script:
    """A dialler whose server is the test: each dial gives one more channel, or the error that is to come."""

    def __init__(self) -> None:
        self.channels: list[FrameChannel] = []
        self.error: NetworkError | None = None

    def narrowed(self, peer: PeerId, addresses: Sequence[str]) -> Sequence[str]:
        """Dialler."""
        return addresses

    async def dial(self, peer: PeerId, addresses: Sequence[str], deadline_s: float) -> Channel:
        """Dialler."""
        if self.error is not None:
            raise self.error
        near, far = MemoryChannel.pair(ME.peer, SERVER.peer)
        self.channels.append(FrameChannel(far))
        return near


class Bench:
    """A hop's client, and what a server would see of it."""

    def __init__(self, sent: int = 0) -> None:
        self.clock = VirtualClock()
        self.script = Script()
        self.sender = Sender()
        self.sender.append(sent)
        self.changes = 0
        record = signed_record(SERVER, name="far")
        self.client = HopClient(
            Hop(SERVER.peer, ALL), record, KEYS, self.script, self.clock, self._changed  # type: ignore[arg-type]
        )  # fmt: skip

    def _changed(self) -> None:
        self.changes += 1

    async def next(self) -> Message:
        """What the client says next, other than a heartbeat, on its last channel."""
        while True:
            message, _ = await self.script.channels[-1].receive(ANY)
            if not isinstance(message, Ping):
                return message

    async def say(self, *messages: Message) -> None:
        """The server says something on the last channel."""
        for message in messages:
            await self.script.channels[-1].send(message)
        await self.clock.settle()

    async def open(self, answer: Message = OPENED) -> None:
        """The session is opened."""
        opening = asyncio.ensure_future(self.client.open(OPEN, self.sender))
        await self.clock.settle()
        assert await self.next() == OPEN
        await self.say(answer)
        await opening

    async def dropped(self) -> None:
        """The connection breaks."""
        self.script.channels[-1].abort()
        await self.clock.settle()


@contextlib.asynccontextmanager
async def running(sent: int = 0) -> AsyncIterator[Bench]:
    """An open hop that is listened to, in a stream of so many rows."""
    bench = Bench(sent)
    await bench.open()
    task = asyncio.ensure_future(bench.client.run(bench.sender))
    await bench.clock.settle()
    try:
        yield bench
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        bench.client.detach()


async def test_a_session_is_opened() -> None:
    """The client knows the hop's arithmetic then, and a grant for itself."""
    bench = Bench()
    await bench.open()
    assert bench.client.opened
    assert (bench.client.numerics, bench.client.weights) == (NUMERICS, ("w",) * 12)
    assert bench.client.first_grant(ME.peer) == GRANT
    assert await bench.client.admit(GRANT, follow=False) == b"first"
    assert bench.client.first_grant(SERVER.peer) is None
    assert bench.client.first_grant(ME.peer) is None


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (refusal(ServerFull("full")), ServerFull),
        (msgspec.structs.replace(OPENED, max_tokens=8), ProtocolError),
        (msgspec.structs.replace(OPENED, weights=("w",)), ProtocolError),
    ],
)
async def test_a_session_that_is_not_granted(answer: Message, error: type[Exception]) -> None:
    """A refusal, or less than what was asked for; the error names the server."""
    bench = Bench()
    with pytest.raises(error) as caught:
        await bench.open(answer)
    assert caught.value.peer == SERVER.peer  # type: ignore[attr-defined]
    assert not bench.client.opened


async def test_orders_are_answered() -> None:
    """Each by its generation."""
    async with running() as bench:
        grant = LinkGrant(5, ME.peer, bytes(16))
        admitting = asyncio.ensure_future(bench.client.admit(grant, follow=True))
        assert await bench.next() == Admit(grant, True)
        await bench.say(Admitted(4, b"other"), Admitted(5, b"mine"))
        assert await admitting == b"mine"
        redirecting = asyncio.ensure_future(bench.client.redirect(Redirect(grant)))
        assert await bench.next() == Redirect(grant)
        await bench.say(LinkState(5, "ready"))
        await redirecting


async def test_a_hop_that_does_not_obey_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """After ORDER_S; the order raises what it is lost for."""
    monkeypatch.setattr("shoal.client.session.hop_client.ORDER_S", 0.01)
    async with running() as bench:
        with pytest.raises(NetworkError, match="did not obey"):
            await bench.client.redirect(Redirect(GRANT))
        assert bench.client.lost is not None
        with pytest.raises(NetworkError, match="did not obey"):
            await bench.client.admit(LinkGrant(9, ME.peer, bytes(16)), follow=False)
    assert ORDER_S == 3.0


async def test_news_of_links_and_of_leaving() -> None:
    """Each is told once; what is known is asked for."""
    async with running() as bench:
        await bench.say(LinkState(5, "down", "no way"), LinkState(5, "down", "no way"))
        assert bench.changes == 1
        news = bench.client.news_of(5)
        assert news is not None
        assert news[0].state == "down"
        assert bench.client.news_of(6) is None
        await bench.say(Leaving(60.0))
        assert (bench.client.leaving, bench.changes) == (True, 2)
        await bench.say(Leaving(0.0, called_off=True))
        assert (bench.client.leaving, bench.changes) == (False, 3)


async def test_a_broken_connection_is_dialled_again_once() -> None:
    """The session is taken up; without an answer the hop is lost, and is told so at once."""
    async with running(sent=7) as bench:
        await bench.dropped()
        assert await bench.next() == Attach("control", KEYS.session, KEYS.incarnation, KEYS.secret)
        await bench.say(Attached(0, 7))
        assert bench.client.lost is None
        assert bench.client.heartbeat.progress.position == 7
        bench.script.error = DialError("nothing there")
        await bench.dropped()
        assert bench.client.lost is bench.script.error
        assert bench.changes == 1


@pytest.mark.parametrize(
    ("message", "error"), [(Pong(99, 0.0, 0.0), RecordError), (Close(), ProtocolError), (OPENED, ProtocolError)]
)
async def test_a_hop_that_breaks_the_rules_is_lost(message: Message, error: type[Exception]) -> None:
    """No dial follows."""
    async with running() as bench:
        await bench.say(message)
        assert isinstance(bench.client.lost, error)
        assert len(bench.script.channels) == 1


async def test_a_silent_hop_is_lost() -> None:
    """After three heartbeats without an answer; a hop that answers is not."""
    async with running() as bench:
        bench.client.beat_often(True)
        for number in range(4):
            await bench.say(Pong(number, 0.0, 0.0, computed=number))
            await bench.clock.advance(2 * TICK_S)
        assert bench.client.lost is None
        for _ in range(12):
            await bench.clock.advance(TICK_S)
        assert "was not heard" in str(bench.client.lost)


async def test_a_later_process_fences_this_one() -> None:
    """What the server says when the session is taken up is why the hop is lost."""
    async with running() as bench:
        await bench.dropped()
        await bench.next()
        await bench.say(refusal(SessionFenced("taken up")))
        assert isinstance(bench.client.lost, SessionFenced)


@pytest.mark.parametrize("fenced", [True, False])
async def test_a_link_that_was_refused(fenced: bool) -> None:
    """The hop is asked for the session before it is lost: a later process may have it."""
    async with running() as bench:
        error = RecordError("another token")
        refused = asyncio.ensure_future(bench.client.link_refused(error))
        await bench.clock.settle()
        assert isinstance(await bench.next(), Attach)
        await bench.say(refusal(SessionFenced("taken up")) if fenced else Attached(0, 0))
        await refused
        assert isinstance(bench.client.lost, SessionFenced) if fenced else bench.client.lost is error


async def test_a_session_is_taken_up_by_a_new_process() -> None:
    """With the arithmetic that its file has; a hop that has nothing is lost."""
    bench = Bench()
    taking = asyncio.ensure_future(bench.client.take_up(3, NUMERICS, ("w",) * 12))
    await bench.clock.settle()
    assert await bench.next() == Attach("control", KEYS.session, KEYS.incarnation, KEYS.secret, epoch=3)
    await bench.say(Attached(3, 9))
    assert await taking == Attached(3, 9)
    assert bench.client.numerics == NUMERICS
    other = Bench()
    other.script.error = DialError("nothing there")
    assert await other.client.take_up(3, NUMERICS, ()) is None
    assert other.client.lost is other.script.error


async def test_rewinds_are_told_once() -> None:
    """The least base of those that the hop may not know."""
    async with running() as bench:
        sender = Sender()
        sender.append(9)
        sender.rewind(1, 5)
        await bench.client.rewind(sender)
        assert await bench.next() == Rewind(1, 5, 0)
        await bench.client.rewind(sender)
        await bench.client.close()
        assert await bench.next() == Close()


async def test_a_closed_hop_is_not_dialled_again() -> None:
    """It is told, and its task ends."""
    bench = Bench()
    await bench.open()
    task = asyncio.ensure_future(bench.client.run(Sender()))
    await bench.clock.settle()
    await bench.client.close()
    await bench.clock.settle()
    assert task.done()
    assert len(bench.script.channels) == 1
    assert bench.client.lost is None


async def test_a_dropped_hop_is_told_to_free_its_memory() -> None:
    """Over a fresh connection, if it lives."""
    async with running() as bench:
        bench.client.fail(NetworkError("hung"))
        releasing = asyncio.ensure_future(bench.client.release())
        await bench.clock.settle()
        assert isinstance(await bench.next(), Attach)
        await bench.say(Attached(0, 0))
        assert await bench.next() == Close()
        await releasing


@pytest.mark.parametrize("pong", [Pong(0, 0.0, 0.0, position=1), Pong(0, 0.0, 0.0, epoch=1)])
async def test_a_hop_that_is_ahead_of_its_client(pong: Pong) -> None:
    """Nothing was sent, and nothing was taken back: the hop is caught."""
    async with running() as bench:
        await bench.say(pong)
        assert isinstance(bench.client.lost, WrongRows)


@pytest.mark.parametrize("attached", [Attached(0, 10), Attached(1, 0), Attached(0, 6)])
async def test_what_a_hop_has_on_a_new_connection(attached: Attached) -> None:
    """More than there is, or less than it has said before: it is caught as at a heartbeat."""
    async with running(sent=9) as bench:
        await bench.say(Pong(0, 0.0, 0.0, position=7, computed=3))
        await bench.dropped()
        await bench.next()
        await bench.say(Attached(0, 8))
        assert bench.client.lost is None
        await bench.say(Pong(0, 0.0, 0.0, position=8, computed=3))
        await bench.dropped()
        await bench.next()
        await bench.say(attached)
        assert isinstance(bench.client.lost, WrongRows)


async def test_a_rewind_that_a_hop_knows_on_a_new_connection() -> None:
    """What it had computed before is void, and it may say less."""
    async with running(sent=9) as bench:
        await bench.say(Pong(0, 0.0, 0.0, position=9, computed=9))
        bench.sender.rewind(1, 4)
        await bench.dropped()
        await bench.next()
        await bench.say(Attached(1, 4), Pong(0, 0.0, 0.0, 1, 4, 2))
        assert bench.client.lost is None
        assert bench.client.heartbeat.progress.computed == 2


@pytest.mark.parametrize("fields", [{"position": 10}, {"epoch": 1}])
async def test_a_hop_that_opens_ahead_of_its_client(fields: dict[str, int]) -> None:
    """It cannot have what was not sent."""
    bench = Bench(9)
    with pytest.raises(WrongRows):
        await bench.open(msgspec.structs.replace(OPENED, **fields))


async def test_a_connection_that_only_breaks() -> None:
    """With no ping answered in between the hop is lost, so that dialling it ends."""
    async with running() as bench:
        for _ in range(MAX_BREAKS):
            await bench.dropped()
            await bench.next()
            await bench.say(Attached(0, 0))
            assert bench.client.lost is None
        await bench.dropped()
        assert "no ping was answered" in str(bench.client.lost)


@pytest.mark.parametrize("signed", ["good", "bytes", "session", "upstream", "generation", "expired"])
async def test_what_a_hop_signed(signed: str) -> None:
    """One that accepts another link than it was asked to is caught; the hop before it cannot know."""
    bench = Bench()
    now, upstream = bench.clock.wall(), PeerId("c" * 64)
    acceptance = Acceptance(
        b"x" * 16 if signed == "session" else KEYS.session,
        SERVER.peer,
        ME.peer if signed == "upstream" else upstream,
        8 if signed == "generation" else 7,
        now - 1.0 if signed == "expired" else now + 60.0,
    )
    data = bytes(70) if signed == "bytes" else sign_acceptance(acceptance, SERVER)
    bench.client.check_acceptance(data, upstream, 7)
    assert (bench.client.lost is None) == (signed == "good")
    assert bench.client.lost is None or isinstance(bench.client.lost, WrongRows)


async def test_a_file_s_hop_of_an_epoch_that_cannot_be() -> None:
    """It would put the stream where no message can say so."""
    bench = Bench()
    taking = asyncio.ensure_future(bench.client.take_up(3, NUMERICS, ("w",) * 12))
    await bench.clock.settle()
    await bench.next()
    await bench.say(Attached(1 << 47, 0))
    assert await taking is None
    assert isinstance(bench.client.lost, WrongRows)


async def test_news_without_end_is_heard_later() -> None:
    """A hop that talks all the time does not keep its client busy; what it said last of links is kept, and no more."""
    async with running() as bench:
        channel = bench.client._channel
        assert channel is not None
        channel.idle_words = TokenBucket(1.0, 100, bench.clock)
        await bench.say(*(LinkState(number, "up") for number in range(200)))
        kept = [number for number in range(200) if bench.client.news_of(number) is not None]
        assert kept == list(range(101 - KEPT_NEWS, 101))
