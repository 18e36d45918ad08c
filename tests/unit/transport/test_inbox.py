"""The buffer between a source of bytes and its reader."""

from __future__ import annotations

import asyncio

import pytest

from shoal.errors import ChannelClosed
from shoal.transport.inbox import PAUSE_BYTES, Inbox


async def test_pieces_in_order() -> None:
    """What is put comes out, up to the limit at a time."""
    inbox = Inbox()
    inbox.put(b"abc")
    inbox.put(b"def")
    assert len(inbox) == 6
    assert [await inbox.get(4), await inbox.get(4)] == [b"abcd", b"ef"]


async def test_reader_waits() -> None:
    """A reader of an empty inbox wakes when something comes."""
    inbox = Inbox()
    waiting = asyncio.create_task(inbox.get())
    await asyncio.sleep(0)
    inbox.put(b"x")
    assert await waiting == b"x"


async def test_source_is_paused_and_resumed() -> None:
    """At PAUSE_BYTES the source is asked to pause, once; at half of it, to go on."""
    events: list[str] = []
    inbox = Inbox(lambda: events.append("pause"), lambda: events.append("resume"))
    inbox.put(bytes(PAUSE_BYTES - 1))
    assert events == []
    inbox.put(b"x")
    inbox.put(b"y")
    assert events == ["pause"]
    await inbox.get(PAUSE_BYTES // 2)
    assert events == ["pause"]
    await inbox.get(1)
    assert events == ["pause", "resume"]


async def test_clean_end_after_the_bytes() -> None:
    """The end comes after everything that was put, and stays."""
    inbox = Inbox()
    inbox.put(b"last")
    inbox.end()
    inbox.end(ChannelClosed("too late to be an error"))
    assert [await inbox.get(), await inbox.get(), await inbox.get()] == [b"last", b"", b""]


async def test_broken_end_after_the_bytes() -> None:
    """So does the error of a broken one; also for a reader that waits already."""
    inbox = Inbox()
    inbox.put(b"last")
    inbox.end(ChannelClosed("broke"))
    assert await inbox.get() == b"last"
    for _ in range(2):
        with pytest.raises(ChannelClosed, match="broke"):
            await inbox.get()
    other = Inbox()
    waiting = asyncio.create_task(other.get())
    await asyncio.sleep(0)
    other.end(ChannelClosed("broke"))
    with pytest.raises(ChannelClosed):
        await waiting


async def test_exact_counts() -> None:
    """Just so many bytes, from several pieces; what follows stays."""
    inbox = Inbox()
    waiting = asyncio.create_task(inbox.get_exactly(5))
    for piece in (b"ab", b"cd", b"efg"):
        await asyncio.sleep(0)
        inbox.put(piece)
    assert await waiting == b"abcde"
    assert await inbox.get() == b"fg"


async def test_end_within_a_count() -> None:
    """An end before enough has come is an EOFError that counts."""
    inbox = Inbox()
    inbox.put(b"abc")
    inbox.end()
    with pytest.raises(EOFError, match="3 of 5"):
        await inbox.get_exactly(5)
