"""The short way of rows through a link: sent in the producer's call, taken in the transport's callback, and when neither."""

from __future__ import annotations

import asyncio

import pytest

from shoal.errors import ChannelClosed, CorruptFrame, GrantExceeded
from shoal.links.row_link import RowLog, RowReceiver, RowSender
from shoal.protocol.frames import encode_frame
from shoal.protocol.journal import Journal, RowChunk
from shoal.protocol.messages import ReceivedUpTo, ResumeFrom, RowsFrame, encode_message
from shoal.protocol.row_stream import Receiver
from shoal.transport.channel import Tap
from shoal.transport.frame_channel import FrameChannel
from shoal.transport.inbox import Inbox
from shoal.types import PeerId


class Pipe:
    """One end of a prompt channel, whose other end is this test: `sent` went out, `arrive` lets bytes come in."""

    transport = "memory"
    peer = PeerId("00" * 32)

    def __init__(self) -> None:
        self.inbox = Inbox()
        self.sent: list[bytes] = []
        self.sends_now = True
        self.writable = asyncio.Event()
        self.writable.set()

    def arrive(self, message: ResumeFrom | ReceivedUpTo | RowsFrame, payload: bytes = b"") -> None:
        """A whole frame comes in."""
        self.inbox.put(bytes(encode_frame(encode_message(message), payload)))

    async def send(self, data: bytes | bytearray) -> None:
        """Into `sent`, then wait as a full buffer does."""
        self.sent.append(bytes(data))
        await self.writable.wait()

    def send_now(self, data: bytes | bytearray) -> None:
        """Into `sent`."""
        self.sent.append(bytes(data))

    def tap(self, tap: Tap | None) -> None:
        """Who is shown bytes first."""
        self.inbox.tap = tap

    async def receive(self) -> bytes:
        """What was not taken at once."""
        return await self.inbox.get()

    async def close(self) -> None:
        """Nothing to flush."""

    def abort(self) -> None:
        """As dropped."""
        self.inbox.end(ChannelClosed("dropped"))


class Taker:
    """Keeps the positions of what it took; `room` says whether it would have to wait, `limit` what it was granted."""

    def __init__(self) -> None:
        self.taken: list[tuple[str, int]] = []
        self.room = asyncio.Event()
        self.room.set()
        self.limit = 100

    def check(self, rows: RowsFrame, payload: bytes) -> None:
        """The grant."""
        if rows.position >= self.limit:
            raise GrantExceeded("too much")

    def truncate(self, position: int) -> None:
        """Remembered too."""
        self.taken.append(("truncate", position))

    def ready(self, rows: RowsFrame) -> bool:
        """Whether there is room."""
        return self.room.is_set()

    def take_now(self, rows: RowsFrame, payload: bytes) -> None:
        """At once."""
        self.taken.append(("now", rows.position))

    async def take(self, rows: RowsFrame, payload: bytes, skip: int) -> None:
        """When there is room."""
        await self.room.wait()
        self.taken.append(("later", rows.position))


async def turns() -> None:
    """Let every task that can run do so."""
    for _ in range(10):
        await asyncio.sleep(0)


class Reading:
    """An inlet that serves a pipe."""

    def __init__(self) -> None:
        self.pipe, self.taker = Pipe(), Taker()
        self.inlet = RowReceiver(Receiver(), self.taker)
        self.frames = FrameChannel(self.pipe)
        self.inlet.attach(self.frames)
        self.serving = asyncio.ensure_future(self.inlet.serve(self.frames))

    async def begin(self) -> None:
        """The sender answers, so that rows may come."""
        await turns()
        self.pipe.arrive(ResumeFrom(0, 0))
        await turns()

    def rows(self, position: int, epoch: int = 0) -> None:
        """A row comes in."""
        self.pipe.arrive(RowsFrame(epoch, position, 1, 0), b"row")

    async def end(self) -> None:
        """Drop the pipe."""
        self.pipe.abort()
        with pytest.raises(ChannelClosed):
            await self.serving


async def test_the_row_that_is_due_is_taken_in_the_callback() -> None:
    """No task runs between its arrival and the taker."""
    reading = Reading()
    await reading.begin()
    reading.rows(0)
    reading.rows(1)
    assert reading.taker.taken == [("now", 0), ("now", 1)]
    await reading.end()


async def test_order_is_kept_when_the_taker_must_wait() -> None:
    """What comes behind a frame that waits is left for the task too, however much room there is by then."""
    reading = Reading()
    await reading.begin()
    reading.taker.room.clear()
    reading.rows(0)
    await turns()
    reading.taker.room.set()
    reading.rows(1)
    assert reading.taker.taken == []
    await turns()
    reading.rows(2)
    assert reading.taker.taken == [("later", 0), ("later", 1), ("now", 2)]
    await reading.end()


async def test_what_is_not_due_takes_the_long_way() -> None:
    """Gaps, duplicates and rewinds are for the rule in `wire.stream`."""
    reading = Reading()
    await reading.begin()
    reading.rows(0)
    reading.rows(5)
    reading.rows(0)
    reading.rows(0, epoch=1)
    await turns()
    assert reading.taker.taken == [("now", 0), ("truncate", 0), ("later", 0)]
    assert len(reading.pipe.sent) == 1  # `have`, because of the gap
    await reading.end()


async def test_an_error_in_the_callback_is_the_readers() -> None:
    """The link ends with it, as if the task had found it."""
    reading = Reading()
    await reading.begin()
    reading.taker.limit = 0
    reading.rows(0)
    with pytest.raises(GrantExceeded):
        await reading.serving
    assert reading.taker.taken == []


async def test_a_corrupt_frame_takes_the_long_way() -> None:
    """Its hash is found wrong by the one who reports such things."""
    reading = Reading()
    await reading.begin()
    frame = encode_frame(encode_message(RowsFrame(0, 0, 1, 0)), b"row")
    frame[-1] ^= 1
    reading.pipe.inbox.put(bytes(frame))
    with pytest.raises(CorruptFrame):
        await reading.serving
    assert reading.taker.taken == []


class Writing:
    """An outlet that serves a pipe, attached and answered."""

    def __init__(self) -> None:
        self.pipe = Pipe()
        self.feed = RowLog(Journal(3, 100))
        self.outlet: RowSender = self.feed.next
        self.serving = asyncio.ensure_future(self.outlet.serve(FrameChannel(self.pipe), ReceivedUpTo(0, 0)))

    def append(self) -> None:
        """One more row."""
        self.feed.append(RowChunk(self.feed.sender.end, 1, b"row", 0))

    @property
    def frames(self) -> int:
        """Rows that went out, beside the answer to `have`."""
        return len(self.pipe.sent) - 1

    async def end(self) -> None:
        """Drop the pipe."""
        self.pipe.abort()
        with pytest.raises(ChannelClosed):
            await self.serving


async def test_a_row_is_sent_in_the_call_that_brings_it() -> None:
    """No task runs in between when everything before it is gone."""
    writing = Writing()
    await turns()
    writing.append()
    writing.append()
    assert writing.frames == 2
    await writing.end()


async def test_rows_before_the_receivers_word_wait() -> None:
    """And go out in order then."""
    writing = Writing()
    writing.append()
    assert writing.pipe.sent == []
    await turns()
    writing.append()
    assert writing.frames == 2
    await writing.end()


async def test_a_full_buffer_is_the_sending_tasks_affair() -> None:
    """The producer goes on at once; the task waits, and nobody overtakes it."""
    writing = Writing()
    await turns()
    writing.pipe.sends_now = False
    writing.pipe.writable.clear()
    writing.append()
    writing.append()
    await turns()
    assert writing.frames == 1
    writing.pipe.sends_now = True
    writing.append()
    assert writing.frames == 1
    writing.pipe.writable.set()
    await turns()
    assert writing.frames == 3
    await writing.end()
