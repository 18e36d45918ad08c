"""Rows that go out: sent in the producer's call where nothing has to wait, by the link's task otherwise."""

from __future__ import annotations

import asyncio

import pytest

from shoal.clock import SYSTEM_CLOCK
from shoal.errors import ChannelClosed, ProtocolError, SessionLost
from shoal.links.row_sender import RowSender
from shoal.protocol.frames import FrameDecoder
from shoal.protocol.journal import Journal, RowChunk
from shoal.protocol.messages import (
    Message,
    Ping,
    ReceivedUpTo,
    Refusal,
    ResumeFrom,
    RowsFrame,
)
from shoal.transport.frame_channel import FrameChannel
from shoal.transport.token_bucket import TokenBucket
from tests.support.any_message import ANY
from tests.support.virtual_clock import VirtualClock
from tests.unit.transport.pipe import Pipe, turns

NOTHING = ReceivedUpTo(0, 0)
"""What a fresh receiver has."""


def messages(pipe: Pipe) -> list[Message]:
    """What went out."""
    decoder = FrameDecoder()
    found = []
    for data in pipe.sent:
        decoder.feed(data)
        while (frame := decoder.next()) is not None:
            found.append(ANY.decode(frame[0]))
    return found


class Writing:
    """A sender that serves a pipe, whose receiver has said what it has unless `have` is None."""

    def __init__(self, budget_rows: int = 100, throttle: TokenBucket | None = None) -> None:
        self.pipe = Pipe()
        self.journal = Journal(3, budget_rows)
        self.sent = 0
        self.dropped: list[int] = []
        self.sender = RowSender(self.journal, throttle, self._count)

    def _count(self) -> None:
        self.sent += 1

    def serve(self, have: ReceivedUpTo | None = NOTHING, elide: bool = False) -> asyncio.Task[None]:
        """Send on a new pipe."""
        self.pipe = Pipe()
        frames = FrameChannel(self.pipe)
        return asyncio.ensure_future(self.sender.serve(frames, have, elide, self.dropped.append))

    def append(self, rows: int = 1, needed_from: int = 0) -> None:
        """More rows."""
        self.journal.append(RowChunk(self.journal.sender.end, rows, b"row" * rows, needed_from))
        self.sender.push()

    @property
    def positions(self) -> list[int]:
        """The frames of rows that went out."""
        return [message.position for message in messages(self.pipe) if isinstance(message, RowsFrame)]


async def test_a_row_is_sent_in_the_call_that_brings_it() -> None:
    """No task runs in between when everything before it is gone."""
    writing = Writing()
    serving = writing.serve()
    await turns()
    writing.append()
    writing.append()
    assert messages(writing.pipe)[0] == ResumeFrom(0, 0)
    assert writing.positions == [0, 1]
    assert writing.sent >= 2
    serving.cancel()


async def test_rows_before_the_receivers_word_wait() -> None:
    """They go out in order in the call that brings the word, behind the answer to it."""
    writing = Writing()
    serving = writing.serve(have=None)
    writing.append()
    await turns()
    writing.append()
    assert writing.pipe.sent == []
    writing.pipe.arrive(ReceivedUpTo(0, 1))
    assert messages(writing.pipe) == [ResumeFrom(0, 1), RowsFrame(0, 1, 1, 0)]
    serving.cancel()


async def test_a_full_buffer_is_the_tasks_affair() -> None:
    """The producer goes on at once; the task waits for room, and nothing overtakes it."""
    writing = Writing()
    serving = writing.serve()
    await turns()
    writing.pipe.room.clear()
    writing.append()
    writing.append()
    await turns()
    assert writing.positions == []
    writing.pipe.room.set()
    writing.append()
    assert writing.positions == []
    await turns()
    assert writing.positions == [0, 1, 2]
    writing.append()
    assert writing.positions == [0, 1, 2, 3]
    serving.cancel()


async def test_a_throttle_makes_rows_wait() -> None:
    """In order, each until its bytes may go."""
    clock = VirtualClock()
    writing = Writing(throttle=TokenBucket(3.0, 3, clock))
    serving = writing.serve()
    await turns()
    for _ in range(3):
        writing.append()
    await clock.settle()
    assert writing.positions == [0]
    await clock.advance(1.0)
    assert writing.positions == [0, 1]
    await clock.advance(1.0)
    assert writing.positions == [0, 1, 2]
    serving.cancel()


async def test_a_receiver_that_asks_again_is_sent_again() -> None:
    """From where it is; a new channel begins with the receiver's word too."""
    writing = Writing()
    serving = writing.serve()
    await turns()
    for _ in range(3):
        writing.append()
    writing.pipe.arrive(ReceivedUpTo(0, 1))
    assert writing.positions == [0, 1, 2, 1, 2]
    again = writing.serve(ReceivedUpTo(0, 2))
    await turns()
    with pytest.raises(ChannelClosed):
        await serving
    assert writing.positions == [2]
    again.cancel()


async def test_rows_that_the_client_does_not_need_have_no_bytes() -> None:
    """On a link that elides."""
    writing = Writing()
    serving = writing.serve(elide=True)
    await turns()
    writing.append(rows=3, needed_from=2)
    (frame,) = [message for message in messages(writing.pipe) if isinstance(message, RowsFrame)]
    assert (frame.count, frame.elided, frame.reply) == (3, 2, 1)
    serving.cancel()


async def test_rows_that_were_dropped_are_told_once() -> None:
    """Where the receiver lacks rows that the journal no longer has; the link stays, since a rewind may help."""
    writing = Writing(budget_rows=1)
    serving = writing.serve()
    await turns()
    for _ in range(4):
        writing.append()
    writing.pipe.arrive(ReceivedUpTo(0, 1))
    writing.append()
    assert writing.dropped == [1]
    assert not serving.done()
    serving.cancel()


@pytest.mark.parametrize(("message", "error"), [(Ping(1), ProtocolError), (Refusal("session", "unknown"), SessionLost)])
async def test_what_must_not_come_ends_the_link(message: Message, error: type[Exception]) -> None:
    """A receiver says `have` or refuses."""
    writing = Writing()
    serving = writing.serve()
    await turns()
    writing.pipe.arrive(message)
    with pytest.raises(error):
        await serving


async def test_a_channel_that_breaks_never_fails_the_producer() -> None:
    """Rows stay in the journal for the next channel."""
    writing = Writing()
    serving = writing.serve()
    await turns()
    writing.append()
    writing.pipe.ended = True  # nobody has been told yet
    writing.append()
    writing.pipe.inbox.end(ChannelClosed("broke"))
    with pytest.raises(ChannelClosed, match="broke"):
        await serving
    writing.append()
    again = writing.serve(ReceivedUpTo(0, 1))
    await turns()
    assert writing.positions == [1, 2]
    again.cancel()


async def test_detaching_ends_the_link() -> None:
    """Rows that come afterwards wait for the next one."""
    writing = Writing()
    serving = writing.serve()
    await turns()
    writing.sender.detach()
    with pytest.raises(ChannelClosed):
        await serving
    writing.append()
    assert writing.positions == []


async def test_questions_without_end_are_read_later() -> None:
    """A receiver that asks again and again is sent no more than it is listened to."""
    writing = Writing()
    writing.journal.append(RowChunk(0, 1, b"row", 0))
    serving = writing.serve()
    await turns()
    frames = writing.sender._frames
    assert frames is not None
    frames.idle_words = TokenBucket(1e-3, 2, SYSTEM_CLOCK)
    before = len(messages(writing.pipe))
    for _ in range(9):
        writing.pipe.arrive(NOTHING)
    assert messages(writing.pipe)[before:] == [ResumeFrom(0, 0), RowsFrame(0, 0, 1, 0)] * 3
    serving.cancel()
