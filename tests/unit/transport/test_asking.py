"""One question to a node."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from shoal.errors import NetworkError, ProtocolError, ServerFull, UnknownQuestion
from shoal.protocol.messages import DESCRIBE, FIRST, STATUS, Describe, Description, GetStatus, Message, Question, Status
from shoal.protocol.refusals import refusal
from shoal.transport.asking import ask
from shoal.transport.channel import Channel
from shoal.transport.dialler import Dialler
from shoal.transport.frame_channel import FrameChannel
from shoal.transport.memory_transport import MemoryNetwork, MemoryTransport
from shoal.types import PeerId

ME, OTHER = PeerId("ab" * 32), PeerId("cd" * 32)
LOAD = Status(1, 2, 3, 4, 5, 0.0, 0.0, 6.0)

Answer = Callable[[FrameChannel], Awaitable[None]]
Contact = tuple[Dialler, tuple[PeerId, tuple[str, ...]]]


class Usage(Message, frozen=True, tag="usage"):
    """A question of a later version."""


@asynccontextmanager
async def answered(answer: Answer) -> AsyncIterator[Contact]:
    """A node that answers so."""
    network = MemoryNetwork()
    one, two = MemoryTransport(ME, network), MemoryTransport(OTHER, network)

    async def accept(channel: Channel) -> None:
        await answer(FrameChannel(channel))

    await two.listen(accept)
    try:
        yield Dialler([one]), (OTHER, two.addresses)
    finally:
        await one.close()
        await two.close()


async def told(frames: FrameChannel) -> None:
    """What a node of this version says."""
    try:
        request, _ = await frames.receive(FIRST)
    except UnknownQuestion as error:
        await frames.send(refusal(error))
        return
    if isinstance(request, GetStatus):
        await frames.send(LOAD)
    elif isinstance(request, Describe):
        await frames.send(Description("tiny", request.fingerprint, "here"), b"{}")


async def test_an_answer_and_its_payload() -> None:
    """Each question has its own answer, and the round trip is measured."""
    async with answered(told) as (dialler, contact):
        reply = await ask(dialler, contact, STATUS, GetStatus())
        assert reply.message == LOAD
        assert 0 <= reply.round_trip_s < 10
        described = await ask(dialler, contact, DESCRIBE, Describe("f0"))
        assert (described.message.fingerprint, described.payload) == ("f0", b"{}")


async def test_a_question_that_the_other_does_not_know() -> None:
    """The asker can tell it from every other refusal, and do without."""
    async with answered(told) as (dialler, contact):
        with pytest.raises(UnknownQuestion, match="usage"):
            await ask(dialler, contact, Question(Usage, Usage, per_span=False), Usage())


async def test_a_refusal() -> None:
    """It is the error that it stands for."""

    async def full(frames: FrameChannel) -> None:
        await frames.receive(FIRST)
        await frames.send(refusal(ServerFull("loading", retry_after=7.0)))

    async with answered(full) as (dialler, contact):
        with pytest.raises(ServerFull, match="loading") as caught:
            await ask(dialler, contact, STATUS, GetStatus())
        assert caught.value.retry_after == 7.0


async def test_the_answer_to_another_question() -> None:
    """It is not read."""

    async def mixed_up(frames: FrameChannel) -> None:
        await frames.receive(FIRST)
        await frames.send(Description("tiny", "f0", "here"))

    async with answered(mixed_up) as (dialler, contact):
        with pytest.raises(ProtocolError, match=r"description.*status"):
            await ask(dialler, contact, STATUS, GetStatus())


async def test_silence() -> None:
    """A node that accepts and says nothing costs the deadline, and is named."""

    async def silent(frames: FrameChannel) -> None:
        await asyncio.Event().wait()

    async with answered(silent) as (dialler, contact):
        with pytest.raises(NetworkError, match=OTHER[:8]):
            await ask(dialler, contact, STATUS, GetStatus(), deadline_s=0.05)
