"""Who answers which question."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from shoal.protocol.messages import DESCRIBE, QUESTIONS, Describe, Description, Ping
from shoal.server.answers import Answers
from shoal.server.channel_dispatcher import ChannelDispatcher
from shoal.server.sessions.session_service import SessionService
from shoal.swarm.directory.directory import Directory
from shoal.transport.channel import Channel
from shoal.transport.frame_channel import FrameChannel
from shoal.transport.memory_transport import MemoryNetwork, MemoryTransport
from shoal.types import PeerId
from tests.unit.swarm.directory.test_records import FixedClock

ME, OTHER = PeerId("ab" * 32), PeerId("cd" * 32)


async def test_an_answer_is_sent_with_its_payload() -> None:
    """The handler hears who asks what; its answer ends the exchange."""
    network, heard = MemoryNetwork(), list[object]()
    answers, told = Answers(), Description("tiny", "f", "someone/tiny")

    def handler(request: Describe, peer: PeerId) -> tuple[Description, bytes]:
        heard.append((request, peer))
        return told, b"more"

    answers.answer(DESCRIBE, handler)
    assert answers.requests == {Describe}

    async def accept(channel: Channel) -> None:
        await answers.begin(FrameChannel(channel), Describe(""), b"")

    one, two = MemoryTransport(ME, network), MemoryTransport(OTHER, network)
    await two.listen(accept)
    async with asyncio.timeout(5), FrameChannel(await one.dial(OTHER, two.addresses[0])) as channel:
        assert await channel.ask(DESCRIBE, Describe("")) == (told, b"more")
    assert heard == [(Describe(""), ME)]
    await one.close()
    await two.close()


def test_every_question_of_a_node_has_a_handler() -> None:
    """Those about blocks are answered by the service, all others by the dispatcher, loading or not."""
    dispatcher = ChannelDispatcher(ME, Directory(FixedClock()))
    assert dispatcher.answers.requests == {one.request for one in QUESTIONS if not one.per_span}


def test_every_question_about_blocks_has_a_handler() -> None:
    """A question that is declared and answered by nobody would end a channel without a word."""
    redirector = SimpleNamespace(clock=FixedClock())
    service = SessionService(*[None] * 4, redirector, None)  # type: ignore[arg-type]  # none of them is asked anything here
    assert service.answers.requests == {one.request for one in QUESTIONS if one.per_span}


async def test_what_has_no_handler_is_a_mistake_here() -> None:
    """The vocabulary of first messages keeps all else away."""
    with pytest.raises(KeyError):
        await Answers().begin(None, Ping(1), b"")  # type: ignore[arg-type]
