"""A channel for a task that waits for bytes."""

from __future__ import annotations

import asyncio

import pytest

from shoal.errors import ChannelClosed
from shoal.transport.byte_stream import ByteStream
from shoal.transport.inbox import PAUSE_BYTES
from tests.unit.transport.pipe import Pipe


async def test_pieces_in_order() -> None:
    """What arrived comes out, up to the limit at a time."""
    pipe = Pipe()
    stream = ByteStream(pipe)
    pipe.inbox.put(b"abc")
    pipe.inbox.put(b"def")
    assert [await stream.receive(4), await stream.receive(4)] == [b"abcd", b"ef"]


async def test_a_reader_waits() -> None:
    """A reader wakes when something comes; one that was cancelled has lost nothing."""
    pipe = Pipe()
    stream = ByteStream(pipe)
    waiting = asyncio.create_task(stream.receive())
    await asyncio.sleep(0)
    waiting.cancel()
    pipe.inbox.put(b"x")
    await asyncio.gather(waiting, return_exceptions=True)
    assert await stream.receive() == b"x"


async def test_the_channel_is_paused_and_resumed() -> None:
    """At PAUSE_BYTES unread, once; at half of them it goes on."""
    pipe = Pipe()
    stream = ByteStream(pipe)
    pipe.inbox.put(bytes(PAUSE_BYTES - 1))
    assert pipe.asked == []
    pipe.inbox.put(b"x")
    pipe.inbox.put(b"y")
    assert pipe.asked == ["pause"]
    await stream.receive_exactly(PAUSE_BYTES // 2)
    await asyncio.sleep(0)
    assert pipe.asked == ["pause", "resume"]
    assert (await stream.receive_exactly(PAUSE_BYTES // 2 + 1))[-1:] == b"y"


async def test_ends_come_after_the_bytes() -> None:
    """A clean one is empty, a broken one its error, both as often as they are asked for."""
    for error, expected in ((None, b""), (ChannelClosed("broke"), None)):
        pipe = Pipe()
        stream = ByteStream(pipe)
        pipe.inbox.put(b"last")
        pipe.inbox.end(error)
        assert await stream.receive() == b"last"
        for _ in range(2):
            if expected is None:
                with pytest.raises(ChannelClosed, match="broke"):
                    await stream.receive()
            else:
                assert await stream.receive() == expected


async def test_exact_counts() -> None:
    """Just as many bytes, from several pieces; an end before them is an EOFError that counts."""
    pipe = Pipe()
    stream = ByteStream(pipe)
    waiting = asyncio.create_task(stream.receive_exactly(5))
    for piece in (b"ab", b"cd", b"efg"):
        await asyncio.sleep(0)
        pipe.inbox.put(piece)
    assert await waiting == b"abcde"
    pipe.inbox.end()
    with pytest.raises(EOFError, match="2 of 5"):
        await stream.receive_exactly(5)


async def test_release_leaves_the_rest() -> None:
    """The next sink of the channel gets what was not read."""
    pipe = Pipe()
    first = ByteStream(pipe)
    pipe.inbox.put(b"nonce and more")
    assert await first.receive_exactly(5) == b"nonce"
    assert await ByteStream(first.release()).receive() == b" and more"


async def test_a_send_waits_for_room() -> None:
    """The bytes are written at once; the sender goes on when the buffer has room."""
    pipe = Pipe()
    stream = ByteStream(pipe)
    pipe.room.clear()
    sending = asyncio.create_task(stream.send(b"x"))
    await asyncio.sleep(0)
    assert (pipe.sent, sending.done()) == ([b"x"], False)
    pipe.room.set()
    await sending
