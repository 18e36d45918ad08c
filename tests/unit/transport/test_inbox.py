"""What stands between a source of bytes and a sink."""

from __future__ import annotations

import asyncio

from shoal.errors import ChannelClosed
from shoal.transport.inbox import PAUSE_BYTES, Inbox


class Sink:
    """Keeps what it is given; `pause_after` pauses the inbox after so many pieces."""

    def __init__(self, inbox: Inbox | None = None, pause_after: int = 0) -> None:
        self.events: list[object] = []
        self._inbox = inbox
        self._pause_after = pause_after

    def data_received(self, data: bytes) -> None:
        """ChannelSink."""
        self.events.append(data)
        if self._inbox is not None and len(self.events) == self._pause_after:
            self._inbox.pause()

    def connection_lost(self, error: Exception | None) -> None:
        """ChannelSink."""
        self.events.append(error)


class Source:
    """An inbox, and what it asks of its source."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.delivered = 0
        self.inbox = Inbox(lambda: self.asked.append("pause"), lambda: self.asked.append("resume"), self._count)

    def _count(self, size_bytes: int) -> None:
        self.delivered += size_bytes


def test_pieces_are_pushed_as_they_come() -> None:
    """In the call that brings them, none joined, none held."""
    source, sink = Source(), Sink()
    source.inbox.attach(sink)
    source.inbox.put(b"abc")
    source.inbox.put(b"def")
    source.inbox.end()
    assert sink.events == [b"abc", b"def", None]
    assert (source.delivered, len(source.inbox), source.asked) == (6, 0, [])


def test_bytes_wait_for_a_sink() -> None:
    """Those that came before it are pushed first, and the end after them; a source of many is paused meanwhile."""
    source, sink = Source(), Sink()
    source.inbox.put(bytes(PAUSE_BYTES - 1))
    assert source.asked == []
    source.inbox.put(b"x")
    source.inbox.put(b"y")
    source.inbox.end(ChannelClosed("broke"))
    assert (source.asked, source.delivered, len(source.inbox)) == (["pause"], 0, PAUSE_BYTES + 1)
    source.inbox.attach(sink)
    assert sink.events[0] == bytes(PAUSE_BYTES - 1) + b"xy"
    assert isinstance(sink.events[1], ChannelClosed)
    assert (source.asked, source.delivered) == (["pause", "resume"], PAUSE_BYTES + 1)


async def test_a_pause_holds_bytes_and_the_end() -> None:
    """Until the sink resumes; then they come in a later turn, so that the sink may resume from anywhere."""
    source = Source()
    sink = Sink(source.inbox, pause_after=1)
    source.inbox.attach(sink)
    source.inbox.put(b"one")
    source.inbox.put(b"two")
    source.inbox.end()
    assert (sink.events, source.asked, source.delivered) == ([b"one"], ["pause"], 3)
    source.inbox.resume()
    assert sink.events == [b"one"]
    await asyncio.sleep(0)
    assert (sink.events, source.asked, source.delivered) == ([b"one", b"two", None], ["pause", "resume"], 6)


async def test_a_sink_may_pause_again_at_once() -> None:
    """Bytes that came meanwhile stay in order."""
    source = Source()
    sink = Sink(source.inbox, pause_after=2)
    source.inbox.attach(sink)
    source.inbox.pause()
    source.inbox.put(b"one")
    source.inbox.resume()
    await asyncio.sleep(0)
    source.inbox.put(b"two")
    source.inbox.put(b"three")
    assert sink.events == [b"one", b"two"]
    source.inbox.resume()
    await asyncio.sleep(0)
    assert sink.events == [b"one", b"two", b"three"]


def test_a_sink_leaves_what_it_has_not_used() -> None:
    """The next one gets it first, and it is counted once."""
    source, first, second = Source(), Sink(), Sink()
    source.inbox.attach(first)
    source.inbox.put(b"used rest")
    source.inbox.detach(b"rest")
    source.inbox.put(b" more")
    assert (source.delivered, len(source.inbox)) == (9, 9)
    source.inbox.attach(second)
    assert (first.events, second.events) == ([b"used rest"], [b"rest more"])
    assert source.delivered == 14


def test_the_end_counts_once() -> None:
    """Nothing comes after it; the sink that is attached next is told too."""
    source, first, second = Source(), Sink(), Sink()
    source.inbox.attach(first)
    source.inbox.end()
    source.inbox.end(ChannelClosed("too late to be an error"))
    source.inbox.put(b"too late")
    source.inbox.detach(b"")
    source.inbox.attach(second)
    assert (first.events, second.events) == ([None], [None])


def test_what_is_dropped_here_is_not_pushed() -> None:
    """An end on this side forgets what is held, and is told even to a sink that has paused."""
    source, sink = Source(), Sink()
    source.inbox.attach(sink)
    source.inbox.pause()
    source.inbox.put(b"held")
    source.inbox.drop(ChannelClosed("dropped"))
    assert [type(event) for event in sink.events] == [ChannelClosed]
