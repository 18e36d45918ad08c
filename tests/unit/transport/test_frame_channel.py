"""Messages over a channel: pushed to a handler, or waited for."""

from __future__ import annotations

import asyncio

import pytest

from shoal.clock import SYSTEM_CLOCK
from shoal.errors import ChannelClosed, CorruptFrame, GrantExceeded, ProtocolError, ServerFull
from shoal.protocol.frames import encode_frame
from shoal.protocol.messages import (
    Close,
    Message,
    Ping,
    Pong,
    ReceivedUpTo,
    RecordBatch,
    RecordDigest,
    Refusal,
    encode_message,
)
from shoal.protocol.refusals import refusal
from shoal.transport.frame_channel import FrameChannel
from shoal.transport.inbox import PAUSE_BYTES
from shoal.transport.token_bucket import TokenBucket
from tests.support.any_message import ANY
from tests.unit.transport.pipe import Pipe, turns


class Delivery:
    """A channel that delivers its messages."""

    def __init__(self) -> None:
        self.pipe = Pipe()
        self.frames = FrameChannel(self.pipe)
        self.got: list[Message] = []
        self.pause_at = 0
        self.serving = asyncio.ensure_future(self.frames.deliver_to(ANY, self._take))

    def _take(self, message: Message, payload: bytes) -> None:
        self.got.append(message)
        if message == Close():
            raise GrantExceeded("too much")
        if len(self.got) == self.pause_at:
            self.frames.pause_reading()


def bytes_of(*messages: Message) -> bytes:
    """Their frames one behind the other."""
    return b"".join(bytes(encode_frame(encode_message(message))) for message in messages)


async def test_messages_are_delivered_in_the_call_that_brings_them() -> None:
    """However the bytes are cut; no task runs in between."""
    delivery = Delivery()
    await turns()
    data = bytes_of(Ping(1), Ping(2), Ping(3))
    delivery.pipe.inbox.put(data[:40])
    delivery.pipe.inbox.put(data[40:])
    assert delivery.got == [Ping(1), Ping(2), Ping(3)]
    delivery.serving.cancel()


async def test_what_came_before_the_handler_is_delivered_first() -> None:
    """Also when the channel has ended meanwhile."""
    pipe, got = Pipe(), list[Message]()
    frames = FrameChannel(pipe)
    pipe.arrive(Ping(1))
    pipe.arrive(Ping(2))
    pipe.inbox.end()
    with pytest.raises(ChannelClosed, match="closed the connection"):
        await frames.deliver_to(ANY, lambda message, payload: got.append(message))
    assert got == [Ping(1), Ping(2)]


async def test_a_pause_holds_the_next_messages() -> None:
    """Those that were cut out of the same bytes too; a resumption delivers them in a later turn."""
    delivery = Delivery()
    delivery.pause_at = 1
    await turns()
    delivery.pipe.inbox.put(bytes_of(Ping(1), Ping(2)))
    delivery.pipe.arrive(Ping(3))
    assert (delivery.got, delivery.pipe.asked) == ([Ping(1)], ["pause"])
    delivery.frames.resume_reading()
    assert delivery.got == [Ping(1)]
    await turns()
    assert delivery.got == [Ping(1), Ping(2), Ping(3)]
    delivery.serving.cancel()


class Idle:
    """A channel whose messages bring nothing new; of `words` at once the rest is read later, some a second."""

    def __init__(self, per_s: float, words: int, until: Message) -> None:
        self.pipe = Pipe()
        self.frames = FrameChannel(self.pipe, idle_words=TokenBucket(per_s, words, SYSTEM_CLOCK))
        self.got: list[Message] = []
        self.all = asyncio.Event()
        self._until = until
        self.serving = asyncio.ensure_future(self.frames.deliver_to(ANY, self._take))

    def _take(self, message: Message, payload: bytes) -> None:
        self.got.append(message)
        self.frames.was_idle()
        if message == self._until:
            self.all.set()


async def test_idle_words_are_read_later() -> None:
    """After as many as are listened to at once the channel is not read; none of them is lost, and the order stays."""
    idle = Idle(1000.0, 2, until=Ping(5))
    await turns()
    said = [Ping(number) for number in range(6)]
    idle.pipe.inbox.put(bytes_of(*said))
    assert (idle.got, idle.pipe.asked) == (said[:3], ["pause"])
    await idle.all.wait()
    assert idle.got == said
    idle.serving.cancel()


async def test_who_has_said_too_much_is_not_read_for_another_reason() -> None:
    """A sink that has room again does not end the wait, and one that is full is not read after it."""
    idle = Idle(1e-3, 1, until=Ping(5))
    await turns()
    idle.pipe.inbox.put(bytes_of(*map(Ping, range(3))))
    assert idle.got == [Ping(0), Ping(1)]
    idle.frames.pause_reading()
    idle.frames.resume_reading()
    await turns()
    assert (idle.got, idle.pipe.asked) == ([Ping(0), Ping(1)], ["pause"])
    idle.frames.abort()
    assert idle.frames._held is None
    idle.serving.cancel()


async def test_a_message_that_comes_within_a_delivery_waits_its_turn() -> None:
    """A handler that makes more bytes come is not entered twice, and sees all in order."""
    pipe, got = Pipe(), list[str]()
    frames = FrameChannel(pipe)

    def handle(message: Message, payload: bytes) -> None:
        got.append(f"begin {message}")
        if message == Ping(1):
            pipe.arrive(Ping(2))
        got.append(f"end {message}")

    serving = asyncio.ensure_future(frames.deliver_to(ANY, handle))
    await turns()
    pipe.arrive(Ping(1))
    assert got == [f"{when} {Ping(id_)}" for id_ in (1, 2) for when in ("begin", "end")]
    serving.cancel()


async def test_the_handlers_error_ends_the_delivery_and_leaves_the_channel() -> None:
    """The task raises it, and can still say why to the other side."""
    delivery = Delivery()
    await turns()
    delivery.pipe.inbox.put(bytes_of(Ping(1), Close(), Ping(2)))
    with pytest.raises(GrantExceeded):
        await delivery.serving
    assert delivery.got == [Ping(1), Close()]
    await delivery.frames.send(refusal(GrantExceeded("too much")))
    assert len(delivery.pipe.sent) == 1


async def test_a_corrupt_frame_ends_the_delivery() -> None:
    """With its own error, after the good ones before it."""
    delivery = Delivery()
    await turns()
    frame = bytearray(bytes_of(Ping(2)))
    frame[-1] ^= 1
    delivery.pipe.inbox.put(bytes_of(Ping(1)) + bytes(frame))
    with pytest.raises(CorruptFrame):
        await delivery.serving
    assert delivery.got == [Ping(1)]


async def test_an_abort_ends_the_delivery_at_once() -> None:
    """Nothing is delivered after it."""
    delivery = Delivery()
    await turns()
    delivery.frames.abort()
    delivery.pipe.arrive(Ping(1))
    with pytest.raises(ChannelClosed):
        await delivery.serving
    assert delivery.got == []


async def test_receive_waits_for_one_message() -> None:
    """One that was cancelled has lost nothing; the end comes after the messages."""
    pipe = Pipe()
    frames = FrameChannel(pipe)
    waiting = asyncio.create_task(frames.receive(ANY))
    await turns()
    waiting.cancel()
    pipe.arrive(RecordDigest(), b"payload")
    await asyncio.gather(waiting, return_exceptions=True)
    pipe.arrive(Ping(2))
    pipe.inbox.end(ChannelClosed("broke"))
    assert await frames.receive(ANY) == (RecordDigest(), b"payload")
    assert await frames.receive(ANY) == (Ping(2), b"")
    with pytest.raises(ChannelClosed, match="broke"):
        await frames.receive(ANY)


async def test_messages_that_are_not_received_pause_the_channel() -> None:
    """At PAUSE_BYTES; it goes on when they have been received and more is waited for."""
    pipe = Pipe()
    frames = FrameChannel(pipe, max_payload_bytes=PAUSE_BYTES)
    for _ in range(2):
        pipe.arrive(RecordBatch(), bytes(PAUSE_BYTES // 2))
    assert pipe.asked == ["pause"]
    for _ in range(2):
        await frames.receive(ANY)
    waiting = asyncio.create_task(frames.receive(ANY))
    await turns()
    assert pipe.asked == ["pause", "resume"]
    waiting.cancel()


async def test_a_larger_payload_is_allowed_from_here_on() -> None:
    """The limit counts for the frames behind the last message, though their bytes have come already."""
    pipe = Pipe()
    frames = FrameChannel(pipe, max_payload_bytes=10)
    pipe.inbox.put(bytes_of(Ping(1)) + bytes(encode_frame(encode_message(RecordBatch()), bytes(100))))
    await frames.receive(ANY)
    frames.allow_payload(100)
    assert (await frames.receive(ANY))[0] == RecordBatch()


async def test_a_payload_follows_from_its_message() -> None:
    """What no payload belongs to comes without one, and one that may not follow is not waited for."""
    pipe = Pipe()
    frames = FrameChannel(pipe)
    pipe.arrive(Ping(1), b"x")
    with pytest.raises(ProtocolError, match="a ping message came with 1 bytes"):
        await frames.receive(ANY)
    pipe.inbox.put(bytes(encode_frame(encode_message(Ping(2)), bytes(100_000)))[:100])
    with pytest.raises(ProtocolError, match="a payload of 100000 bytes"):
        await frames.receive(ANY)


async def test_release_leaves_the_rest_to_another() -> None:
    """What came behind the last message is the next sink's."""
    pipe = Pipe()
    first = FrameChannel(pipe)
    pipe.inbox.put(bytes_of(Ping(1), Ping(2)))
    assert (await first.receive(ANY))[0] == Ping(1)
    assert (await FrameChannel(first.release()).receive(ANY))[0] == Ping(2)


async def test_expect() -> None:
    """The message that is due; a refusal is the error that it stands for, anything else breaks the protocol."""
    pipe = Pipe()
    frames = FrameChannel(pipe)
    for message in (Pong(1, 0.0, 0.0), Refusal("full", "later", 7.0), ReceivedUpTo(0, 0)):
        pipe.arrive(message)
    assert (await frames.expect(Pong))[0].id == 1
    with pytest.raises(ServerFull) as full:
        await frames.expect(Pong)
    assert full.value.retry_after == 7.0
    with pytest.raises(ProtocolError, match="'have' message has no place"):
        await frames.expect(Pong)


async def test_a_send_waits_for_room_and_one_without_waiting_does_not() -> None:
    """Both write at once."""
    pipe = Pipe()
    frames = FrameChannel(pipe)
    pipe.room.clear()
    assert not frames.writable
    frames.send_nowait(Ping(1))
    sending = asyncio.create_task(frames.send(Ping(2)))
    await turns()
    assert (len(pipe.sent), sending.done()) == (2, False)
    pipe.room.set()
    await sending
    assert frames.writable
