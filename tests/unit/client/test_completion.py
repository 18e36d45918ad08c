"""Replies as values, and streams of them: what they show, one reader at a time, closing at any moment."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import msgspec
import pytest

from shoal.client.completion import AsyncCompletionStream, Completion, GrowingReply, Timings, Usage
from shoal.errors import UsageError
from shoal.model.nn.sampling_params import SamplingParams

Opened = set[AsyncCompletionStream]


def growing() -> GrowingReply:
    """A reply that has not begun."""
    return GrowingReply([1, 2, 3], SamplingParams(seed=7))


class Source:
    """Gives pieces of a reply; stops before each until it is let go, and notes how it ended."""

    def __init__(self, pieces: str = "abc", hold: bool = False) -> None:
        self.reply = growing()
        self.opened: Opened = set()
        self.ended = ""
        self.waiting = asyncio.Event()
        self._go = asyncio.Event()
        if not hold:
            self._go.set()
        self.stream = AsyncCompletionStream(self.reply, self._generate(pieces), self.opened)

    async def _generate(self, pieces: str) -> AsyncGenerator[str, None]:
        try:
            for token, piece in enumerate(pieces):
                self.waiting.set()
                await self._go.wait()
                self.reply.token_ids.append(token)
                self.reply.text += piece
                yield piece
            self.reply.finish_reason = "length"
        except BaseException as error:
            self.ended = type(error).__name__
            await asyncio.sleep(0)  # as a session tells its hops
            self.ended += ", told"
            raise


async def test_a_stream_shows_the_reply_as_it_grows() -> None:
    """The same fields while it grows and in the end."""
    source = Source()
    stream = source.stream
    assert (stream.text, stream.token_ids, stream.prompt_ids, stream.seed) == ("", (), (1, 2, 3), 7)
    assert not source.opened
    seen = [(piece, stream.text, stream.usage.completion_tokens) async for piece in stream]
    assert seen == [("a", "a", 1), ("b", "ab", 2), ("c", "abc", 3)]
    assert not source.opened
    reply = stream.completion
    assert (reply.text, reply.token_ids, reply.finish_reason, reply.usage) == (
        "abc",
        (0, 1, 2),
        "length",
        Usage(3, 0, 3),
    )
    assert (reply.route, reply.failovers, reply.traces, reply.exact) == ((), (), (), True)
    assert str(reply) == f"{reply}" == "abc"
    assert repr(reply) == "<Completion 'abc' 3 tokens, length>"
    assert repr(stream) == "<AsyncCompletionStream 'abc' 3 tokens, length>"
    with pytest.raises(AttributeError):
        reply.text = "other"  # type: ignore[misc]


def test_the_fields_of_streams_are_those_of_completions() -> None:
    """No name means something else here or there."""
    stream = AsyncCompletionStream(growing(), Source._generate(Source.__new__(Source), ""), set())
    assert {name for name in Completion.__struct_fields__ if not hasattr(stream, name)} == set()


def test_a_long_text_is_shortened_in_its_repr() -> None:
    """A reply of a thousand words is not printed twice."""
    reply = growing()
    reply.text = "x" * 1000
    shown = repr(AsyncCompletionStream(reply, Source._generate(Source.__new__(Source), ""), set()))
    assert len(shown) < 120
    assert "…" in shown


def test_rates_follow_from_times() -> None:
    """And are 0 where nothing was timed."""
    assert Timings(2.0, 4.0, 10, 20).prefill_tokens_per_s == 5.0
    assert Timings(2.0, 4.0, 10, 20).decode_tokens_per_s == 5.0
    assert Timings(0.0, 0.0, 0, 0).decode_tokens_per_s == Timings(0.0, 0.0, 0, 0).prefill_tokens_per_s == 0.0


def test_a_seed_is_drawn_unless_it_is_given() -> None:
    """The reply says which it was, so that it can be had again."""
    drawn = {GrowingReply([1], SamplingParams()).seed for _ in range(3)}
    assert len(drawn) == 3
    assert GrowingReply([1], SamplingParams(seed=7)).seed == 7
    assert GrowingReply([1], SamplingParams(seed=7), seed=8).seed == 8
    with pytest.raises(UsageError, match="no tokens"):
        GrowingReply([], SamplingParams())


async def test_finish_gives_the_whole_reply() -> None:
    """Also from where some of it was read."""
    source = Source()
    assert await anext(source.stream) == "a"
    assert (await source.stream.finish()).text == "abc"
    assert await source.stream.next_piece() is None


async def test_a_stream_left_early_ends_its_source() -> None:
    """Closing twice is harmless; nothing comes any more."""
    source = Source()
    async with source.stream as stream:
        assert await anext(stream) == "a"
        assert source.opened == {stream}
    assert source.ended == "GeneratorExit, told"
    assert not source.opened
    await stream.aclose()
    assert [piece async for piece in stream] == []
    assert stream.completion.finish_reason == ""


async def test_a_stream_that_was_never_read_closes() -> None:
    """Nothing has begun, and nothing is left behind."""
    source = Source()
    await source.stream.aclose()
    assert [piece async for piece in source.stream] == []
    assert source.ended == ""


async def test_closing_ends_the_wait_of_another_task() -> None:
    """For its reader the reply is over: no error, and it is not cancelled."""
    source = Source(hold=True)

    async def read() -> str:
        pieces = [piece async for piece in source.stream]
        await asyncio.sleep(0)
        return f"read {pieces}"

    reader = asyncio.create_task(read())
    await source.waiting.wait()
    await source.stream.aclose()
    assert source.ended == "CancelledError, told"
    assert await reader == "read []"


async def test_a_reader_that_is_cancelled_ends_the_source() -> None:
    """As Ctrl-C does; the stream may be closed after that as always."""
    source = Source(hold=True)
    reader = asyncio.create_task(source.stream.next_piece())
    await source.waiting.wait()
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    assert source.ended == "CancelledError, told"
    assert not source.opened
    await source.stream.aclose()
    assert await source.stream.next_piece() is None


async def test_one_reader_at_a_time() -> None:
    """Two would get half the text each."""
    source = Source(hold=True)
    reader = asyncio.create_task(source.stream.next_piece())
    await source.waiting.wait()
    with pytest.raises(UsageError, match="one reader"):
        await source.stream.next_piece()
    await source.stream.aclose()
    assert await reader is None


def test_a_completion_is_json() -> None:
    """All of it."""
    source = growing()
    fields = msgspec.to_builtins(
        AsyncCompletionStream(source, Source._generate(Source.__new__(Source), ""), set()).completion
    )
    assert set(fields) == set(Completion.__struct_fields__)
