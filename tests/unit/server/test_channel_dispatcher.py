"""Where channels arrive."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import SimpleNamespace

import pytest

from shoal.errors import ChannelClosed, NotHeld, ProtocolError, Refused, ServerFull, SpanError, UnknownQuestion
from shoal.protocol.frames import encode_frame
from shoal.protocol.messages import (
    EXCHANGE,
    LEAVE,
    STATUS,
    GetStatus,
    Leave,
    Message,
    Ping,
    Question,
    RecordBatch,
    RecordDigest,
    Status,
    encode_message,
)
from shoal.server import channel_dispatcher
from shoal.server.accounts import Accounts
from shoal.server.answers import Answers
from shoal.server.channel_dispatcher import IDLE_WORDS, LOADING_RETRY_S, MAX_FIRST_HEADER_BYTES, ChannelDispatcher
from shoal.swarm.directory.directory import Directory
from shoal.transport.frame_channel import FrameChannel
from shoal.transport.memory_transport import MemoryChannel, MemoryNetwork, MemoryTransport
from shoal.types import PeerId
from tests.unit.swarm.directory.test_records import NOW, FixedClock
from tests.unit.transport.pipe import turns

ME, OTHER = PeerId("ab" * 32), PeerId("cd" * 32)


class Usage(Message, frozen=True, tag="usage"):
    """A question of a later version."""


class World:
    """A dispatcher that listens, and nodes that dial it."""

    def __init__(self) -> None:
        self.network = MemoryNetwork()
        self.dispatcher = ChannelDispatcher(ME, Directory(FixedClock()))
        self.listening = MemoryTransport(ME, self.network)
        self.nodes = {peer: MemoryTransport(peer, self.network) for peer in (OTHER, ME)}

    async def dial(self, peer: PeerId = OTHER) -> FrameChannel:
        """A channel from this node."""
        return FrameChannel(await self.nodes[peer].dial(ME, self.listening.addresses[0]))


@pytest.fixture
async def world() -> AsyncIterator[World]:
    """A server that is loading blocks."""
    world = World()
    await world.listening.listen(world.dispatcher.handle)
    yield world
    for transport in (*world.nodes.values(), world.listening):
        await transport.close()


async def test_a_server_that_loads(world: World) -> None:
    """It says when to come back to those who ask about its blocks, and answers all else."""
    with pytest.raises(ServerFull) as caught:
        await (await world.dial()).ask(STATUS, GetStatus())
    assert caught.value.retry_after == LOADING_RETRY_S
    assert await (await world.dial()).ask(EXCHANGE, RecordDigest()) == (RecordBatch(sent_at=NOW), b"")


async def test_a_server_that_serves(world: World) -> None:
    """Its blocks answer; what they refuse is told with the code of the refusal."""
    status = Status(1, 2, 3, 4, 5, 0.0, 0.0, 6.0)
    answers = Answers()
    answers.answer(STATUS, lambda request, peer: (status, b""))
    world.dispatcher.answer_by(SimpleNamespace(answers=answers))  # type: ignore[arg-type]  # a service by its shape
    assert await (await world.dial()).ask(STATUS, GetStatus()) == (status, b"")

    def refuse(request: GetStatus, peer: PeerId) -> tuple[Status, bytes]:
        raise SpanError("moved")

    answers.answer(STATUS, refuse)
    with pytest.raises(NotHeld, match="moved"):
        await (await world.dial()).ask(STATUS, GetStatus())


async def test_only_its_owner_orders_a_server_to_leave(world: World) -> None:
    """The key that dials decides."""
    with pytest.raises(Refused, match="own key"):
        await (await world.dial()).ask(LEAVE, Leave())
    assert not world.dispatcher.ordered_to_leave.is_set()
    await (await world.dial(ME)).ask(LEAVE, Leave())
    assert world.dispatcher.ordered_to_leave.is_set()


async def test_what_no_channel_begins_with(world: World) -> None:
    """A question of a later version, and messages that belong elsewhere."""
    for kind, message in ((Usage, Usage()), (Ping, Ping(1))):
        with pytest.raises(UnknownQuestion):
            await (await world.dial()).ask(Question(kind, kind, per_span=False), message)


async def test_silence_ends_a_channel(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever dials and says nothing is told so, and costs no more."""
    monkeypatch.setattr(channel_dispatcher, "FIRST_MESSAGE_S", 0.02)
    channel = await world.dial()
    with pytest.raises(ProtocolError, match="nothing was said"):
        await channel.expect(Status)


async def test_a_node_has_so_many_channels(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """One more is refused, and others are not."""
    monkeypatch.setattr(channel_dispatcher, "MAX_CHANNELS_PER_PEER", 1)
    silent = await world.dial()
    with pytest.raises(ServerFull, match="of this node"):
        await (await world.dial()).expect(Status)
    await (await world.dial(ME)).ask(LEAVE, Leave())
    await silent.close()


async def test_silent_channels_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """With too many, the oldest of the account with most is dropped, and the newcomer is answered."""
    monkeypatch.setattr(channel_dispatcher, "MAX_UNSETTLED", 2)
    world = World()
    await world.listening.listen(world.dispatcher.handle)
    silent = [await world.dial() for _ in range(3)]
    with pytest.raises(ChannelClosed):
        await silent[0].expect(Status)
    await (await world.dial(ME)).ask(LEAVE, Leave())
    for transport in (*world.nodes.values(), world.listening):
        await transport.close()


async def test_exchanges_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the moment when a long digest begins to come."""
    monkeypatch.setattr(channel_dispatcher, "MAX_EXCHANGES", 1)
    world = World()
    await world.listening.listen(world.dispatcher.handle)
    channels = [await world.dial() for _ in range(2)]
    for channel in channels:
        channel._channel.write(encode_frame(encode_message(RecordDigest()), bytes(40 * 400))[:1000])
        await turns()
    with pytest.raises(ChannelClosed):
        await channels[0].expect(Status)
    assert await (await world.dial(ME)).ask(EXCHANGE, RecordDigest()) == (RecordBatch(sent_at=NOW), b"")
    for transport in (*world.nodes.values(), world.listening):
        await transport.close()


async def test_what_no_message_carries_is_not_waited_for(world: World) -> None:
    """A payload that may not follow is refused as soon as its header is there, and so is a header for nothing."""
    channel = await world.dial()
    channel._channel.write(encode_frame(encode_message(GetStatus()), bytes(1 << 20))[:1000])
    with pytest.raises(ProtocolError, match="a payload of 1048576 bytes"):
        await channel.expect(Status)
    channel = await world.dial()
    channel._channel.write(encode_frame(bytes(MAX_FIRST_HEADER_BYTES + 1))[:100])
    with pytest.raises(ProtocolError, match="a header of"):
        await channel.expect(Status)


async def test_an_accounts_idle_words_are_counted_together() -> None:
    """However many channels and keys it has; an account that the owner has raised has as many times more."""
    raised = PeerId("ef" * 32)
    dispatcher = ChannelDispatcher(ME, Directory(FixedClock()), FixedClock(), Accounts({raised: 4}))
    served: list[FrameChannel] = []

    async def keep(frames: FrameChannel, request: Message, payload: bytes) -> None:
        served.append(frames)

    dispatcher.answers.serve(EXCHANGE, keep)
    for peer in (OTHER, PeerId("12" * 32), raised):
        near, far = MemoryChannel.pair(peer, ME)
        await FrameChannel(near).send(RecordDigest())
        await dispatcher.handle(far)
    one, other, more = (frames.idle_words for frames in served)
    assert one is other
    assert sum(one.try_take() for _ in range(5000)) == IDLE_WORDS
    assert sum(more.try_take() for _ in range(5000)) == 4 * IDLE_WORDS
