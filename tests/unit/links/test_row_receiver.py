"""Rows that come in: taken in the call that brings them, held back when the sink is full, and refused when they must be."""

from __future__ import annotations

import asyncio

import pytest

from shoal.clock import SYSTEM_CLOCK
from shoal.errors import ChannelClosed, CorruptFrame, GrantExceeded, ProtocolError, WrongRows
from shoal.links.row_receiver import MAX_REPEATED_ROWS, MAX_STALE_ROWS, RowReceiver
from shoal.protocol.frames import encode_frame
from shoal.protocol.messages import Message, Ping, ReceivedUpTo, Refusal, ResumeFrom, RowsFrame, encode_message
from shoal.protocol.row_stream import Receiver
from shoal.transport.frame_channel import FrameChannel
from shoal.transport.token_bucket import TokenBucket
from tests.unit.transport.pipe import Pipe, turns


class Sink:
    """Keeps the positions of what it took; full beyond `room` rows, and granted `limit`."""

    def __init__(self) -> None:
        self.taken: list[tuple[str, int, int]] = []
        self.room = 100
        self.limit = 100

    @property
    def full(self) -> bool:
        """RowSink."""
        return len(self.taken) > self.room

    def check(self, rows: RowsFrame, payload: bytes) -> None:
        """RowSink: the grant."""
        if rows.position >= self.limit:
            raise GrantExceeded("too much")

    def truncate(self, position: int) -> None:
        """RowSink: noted."""
        self.taken.append(("truncate", position, 0))

    def take(self, rows: RowsFrame, payload: bytes, skip: int) -> None:
        """RowSink: noted."""
        self.taken.append(("take", rows.position, skip))


class Reading:
    """A receiver that serves a pipe, as if its sender had answered."""

    def __init__(self) -> None:
        self.pipe, self.sink = Pipe(), Sink()
        self.receiver = RowReceiver(Receiver(), self.sink)
        self.serving = self.attach(self.pipe)

    def attach(self, pipe: Pipe) -> asyncio.Task[None]:
        """Serve one more pipe."""
        frames = FrameChannel(pipe)
        assert self.receiver.attach(frames) == ReceivedUpTo(
            self.receiver.receiver.epoch, self.receiver.receiver.position
        )
        pipe.arrive(ResumeFrom(self.receiver.receiver.epoch, self.receiver.receiver.position))
        return asyncio.ensure_future(self.receiver.serve(frames))

    def rows(self, position: int, count: int = 1, epoch: int = 0) -> None:
        """Rows come in."""
        self.pipe.arrive(RowsFrame(epoch, position, count, 0), b"row" * count)


@pytest.fixture
async def reading() -> Reading:
    """A receiver that has heard from its sender."""
    made = Reading()
    await turns()
    return made


async def test_rows_are_taken_in_the_call_that_brings_them(reading: Reading) -> None:
    """No task runs between their arrival and the sink."""
    reading.rows(0)
    reading.rows(1)
    assert reading.sink.taken == [("take", 0, 0), ("take", 1, 0)]


async def test_gaps_repetitions_and_rewinds(reading: Reading) -> None:
    """A gap is asked for once, known rows are left out, a higher epoch truncates before it is taken."""
    reading.rows(0)
    reading.rows(5)
    reading.rows(6)
    assert len(reading.pipe.sent) == 1
    reading.rows(0, count=3)
    reading.rows(1)
    reading.rows(2, epoch=1)
    assert reading.sink.taken == [("take", 0, 0), ("take", 0, 1), ("truncate", 2, 0), ("take", 2, 0)]


async def test_an_answer_may_truncate(reading: Reading) -> None:
    """The sender's `from` tells of a rewind that this side does not know."""
    reading.rows(0, count=4)
    reading.pipe.arrive(ResumeFrom(1, 2))
    assert reading.sink.taken == [("take", 0, 0), ("truncate", 2, 0)]
    assert (reading.receiver.receiver.epoch, reading.receiver.receiver.position) == (1, 2)


async def test_a_full_sink_holds_the_link_back(reading: Reading) -> None:
    """After the frame that filled it nothing is taken until it has room and says so; then all comes in order."""
    reading.sink.room = 0
    for position in range(3):
        reading.rows(position)
    assert (reading.sink.taken, reading.pipe.asked) == ([("take", 0, 0)], ["pause"])
    reading.receiver.resume()
    await turns()
    assert len(reading.sink.taken) == 1
    reading.sink.room = 100
    reading.receiver.resume()
    assert len(reading.sink.taken) == 1  # in a later turn
    await turns()
    assert [position for _, position, _ in reading.sink.taken] == [0, 1, 2]
    assert reading.pipe.asked == ["pause", "resume"]


async def test_a_newer_channel_replaces_an_older_one(reading: Reading) -> None:
    """What still comes on the older one is nobody's; the newer one begins with what this side has, and is not paused."""
    reading.sink.room = 0
    reading.rows(0)
    old, reading.pipe = reading.pipe, Pipe()
    reading.sink.room = 100
    serving = reading.attach(reading.pipe)
    await turns()
    with pytest.raises(ChannelClosed):
        await reading.serving
    old.arrive(RowsFrame(0, 1, 1, 0), b"old")
    reading.rows(1)
    assert [position for _, position, _ in reading.sink.taken] == [0, 1]
    serving.cancel()


@pytest.mark.parametrize(
    ("message", "error"),
    [
        (RowsFrame(0, 100, 1, 0), GrantExceeded),
        (Ping(1), ProtocolError),
        (Refusal("grant", "no more"), GrantExceeded),
    ],
)
async def test_what_must_not_come_ends_the_link(
    reading: Reading, message: RowsFrame | Ping | Refusal, error: type[Exception]
) -> None:
    """With the sink's error, a refusal's, or as a break of the protocol; the channel can still carry the reason."""
    reading.pipe.arrive(message)
    with pytest.raises(error):
        await reading.serving
    assert reading.sink.taken == []
    assert not reading.pipe.ended


async def test_a_corrupt_frame_ends_the_link(reading: Reading) -> None:
    """As a fault of the network."""
    frame = encode_frame(encode_message(RowsFrame(0, 0, 1, 0)), b"row")
    frame[-1] ^= 1
    reading.pipe.inbox.put(bytes(frame))
    with pytest.raises(CorruptFrame):
        await reading.serving
    assert reading.sink.taken == []


async def test_a_sender_that_does_not_read_is_cut_off(reading: Reading) -> None:
    """It cannot make this side keep questions for it without a bound."""
    reading.pipe.room.clear()
    reading.rows(5)
    with pytest.raises(ProtocolError, match="does not read"):
        await reading.serving


async def test_detaching_ends_the_link(reading: Reading) -> None:
    """And nothing comes after it."""
    reading.receiver.detach()
    with pytest.raises(ChannelClosed):
        await reading.serving
    assert reading.pipe.ended
    reading.receiver.resume()  # harmless


@pytest.mark.parametrize(
    "words",
    [
        [(RowsFrame(0, 0, 1, 0), b"row")],
        [(RowsFrame(0, 5, 1, 0), b"row")],
        [(ResumeFrom(0, 1), b"")],
        [(RowsFrame(epoch, 0, 1, epoch - 1), b"row") for epoch in range(1, 6)],
    ],
    ids=["known rows", "rows behind a gap", "starts", "rows of ever later epochs"],
)
async def test_words_that_bring_nothing_are_counted(reading: Reading, words: list[tuple[Message, bytes]]) -> None:
    """Too many are not read at once; rows that follow are no idle words."""
    reading.rows(0)
    frames = reading.receiver._frames
    assert frames is not None
    frames.idle_words = TokenBucket(1e-3, 2, SYSTEM_CLOCK)
    for position in range(1, 9):
        reading.rows(position)
    assert reading.pipe.asked == []
    for message, payload in (words * 5)[:3]:
        reading.pipe.arrive(message, payload)
    assert reading.pipe.asked == ["pause"]


@pytest.mark.parametrize(("epoch", "most"), [(1, MAX_REPEATED_ROWS + 2 * 8), (0, MAX_STALE_ROWS)])
async def test_rows_that_come_again_and_again(epoch: int, most: int) -> None:
    """So many may have been on their way; more keep a receiver busy for nothing. New ones in between excuse them."""
    receiver = RowReceiver(Receiver(1, 8), Sink())
    known = RowsFrame(epoch, 0, 8, epoch)
    for _ in range(most // 8):
        receiver.on_frame(known, b"")
    receiver.on_frame(RowsFrame(1, 8, 1, 1), b"")
    for _ in range(most // 8):
        receiver.on_frame(known, b"")
    with pytest.raises(WrongRows, match="again and again"):
        for _ in range(4):
            receiver.on_frame(known, b"")


async def test_a_start_that_cannot_be() -> None:
    """Who knows every epoch refuses one that there is not, before anything is truncated."""

    def check(message: ResumeFrom) -> None:
        if message.epoch > 1:
            raise WrongRows("no such epoch")

    sink = Sink()
    receiver = RowReceiver(Receiver(1, 8), sink, check)
    receiver.on_frame(ResumeFrom(1, 8), b"")
    with pytest.raises(WrongRows):
        receiver.on_frame(ResumeFrom(2, 0), b"")
    assert (sink.taken, receiver.receiver.epoch) == ([], 1)
