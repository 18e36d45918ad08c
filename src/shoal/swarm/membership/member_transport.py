"""The gate of a private swarm: a transport on which nothing passes before both ends have shown a certificate.

Each side's first message is `present`. The dialler's travels together with whatever it says next, if it has met that
member before; with a node that it has not met, it waits for the answer first, so that only members ever hear more. The
acceptor shows its own certificate only when the dialler's is good. Strangers get one constant refusal.
"""

from __future__ import annotations

import asyncio
import weakref

from shoal.errors import ChannelClosed, NetworkError, NotAMember, ShoalError
from shoal.protocol.frames import FrameDecoder, encode_frame
from shoal.protocol.messages import (
    GREETING,
    MAX_REVOCATIONS_BYTES,
    Certified,
    MemberHello,
    Message,
    Redeem,
    Refusal,
    Renew,
    Revoked,
    encode_message,
    only,
)
from shoal.protocol.refusals import refusal, refused
from shoal.swarm.membership.certificate_issuer import CertificateIssuer
from shoal.swarm.membership.membership_state import MembershipState
from shoal.transport.channel import (
    Channel,
    ChannelHandler,
    ChannelSink,
    ForwardingChannel,
    ForwardingTransport,
    Transport,
)
from shoal.transport.frame_channel import FrameChannel
from shoal.transport.slots import Slots
from shoal.types import PeerId

GREETING_TIMEOUT_S = 3.0
"""How long an accepted channel may take to show a certificate; honest ones come with it."""

MAX_UNGREETED = 128
"""Channels that have shown nothing yet; one more drops an old one of the busiest source. Members are through in no time."""

MAX_GREETING_BYTES = 4096
"""The largest header before a peer is known to be a member; there is no payload."""

REFUSAL = "only members of this swarm are answered; an invite makes one"


class MemberChannel(ForwardingChannel):
    """A channel to a member. Made by the dialler, it may still have to read the other side's greeting.

    It is the sink of the wrapped channel until then, and leaves that channel to its own sink afterwards.
    """

    def __init__(self, inner: Channel, state: MembershipState, proven: bool = False) -> None:
        super().__init__(inner)
        self._state = state
        self._decoder = FrameDecoder(max_payload_bytes=0, max_header_bytes=MAX_GREETING_BYTES)
        self._greeting: MemberHello | None = None
        self._sink: ChannelSink | None = None
        self._read: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if proven:
            self._read.set_result(None)
        else:
            inner.attach(self)

    async def prove(self) -> None:
        """Wait for the acceptor's greeting. Raises NotAMember when it refuses or is none itself."""
        await asyncio.shield(self._read)

    def data_received(self, data: bytes) -> None:
        """ChannelSink: a part of the greeting."""
        try:
            self._decoder.feed(data)
            while not self._read.done() and (frame := self._decoder.next()) is not None:
                self._take(*frame)
        except ShoalError as error:
            self._fail(error)

    def connection_lost(self, error: Exception | None) -> None:
        """ChannelSink: it ended within the greeting."""
        self._fail(error or ChannelClosed(f"peer {self.peer[:8]} closed the connection"))

    def _take(self, header: bytes, payload: bytes) -> None:
        if self._greeting is None:
            self._greeting = _acceptors(only(MemberHello).decode(header), self.peer)
            self._state.meet(self.peer, self._greeting)
            if self._greeting.news:
                self._decoder.allow_payload(MAX_REVOCATIONS_BYTES)
                return
        else:
            news = only(Revoked).decode(header)
            if isinstance(news, Refusal):
                raise refused(news, self.peer)
            _take_news(payload, self.peer, self._state)
        if self._read.done():
            return  # the news had this very channel dropped
        self._read.set_result(None)
        self._inner.detach(self._decoder.take_rest())
        if self._sink is not None:
            self._inner.attach(self._sink)

    def _fail(self, error: Exception) -> None:
        if not self._read.done():
            self._read.set_exception(error)
            self._read.exception()  # the task in `prove` raises it, if there is one; the sink is told below
            self._inner.abort()
            if self._sink is not None:
                self._sink.connection_lost(error)

    def attach(self, sink: ChannelSink) -> None:
        """Channel: push into this sink, after the greeting."""
        if not self._read.done():
            self._sink = sink
        elif (error := self._read.exception()) is not None:
            sink.connection_lost(error if isinstance(error, Exception) else None)
        else:
            self._inner.attach(sink)

    def detach(self, unused: bytes) -> None:
        """Channel: the sink leaves."""
        self._sink = None
        if self._read.done():
            self._inner.detach(unused)

    def write(self, data: bytes | bytearray) -> None:
        """Channel: hand over bytes. Raises what was wrong with the greeting, if that ended the channel."""
        try:
            self._inner.write(data)
        except ChannelClosed as error:
            raise self._end(error) from error

    async def drain(self) -> None:
        """Channel: wait for room. Raises what was wrong with the greeting, if that ended the channel."""
        try:
            await self._inner.drain()
        except ChannelClosed as error:
            raise self._end(error) from error

    def _end(self, closed: ChannelClosed) -> BaseException:
        """Why the channel is closed: the greeting's fault, if it had one."""
        return (self._read.exception() if self._read.done() else None) or closed


class MemberTransport(ForwardingTransport):
    """Any transport, for one private swarm. With a redeemer, it also answers those who want to become members.

    `refused` counts the channels that were not let in.
    """

    def __init__(self, inner: Transport, state: MembershipState, redeemer: CertificateIssuer | None = None) -> None:
        super().__init__(inner)
        self._state = state
        self._redeemer = redeemer
        self.refused = 0
        self._ungreeted: Slots[FrameChannel] = Slots(MAX_UNGREETED)
        self._channels: weakref.WeakSet[MemberChannel] = weakref.WeakSet()
        state.on_change.append(self.sweep)

    def sweep(self) -> None:
        """Drop the channels of nodes that are members no longer; those who have a newer certificate dial again."""
        for channel in list(self._channels):
            if not self._state.is_member(channel.peer):
                channel.abort()

    async def listen(self, handler: ChannelHandler) -> None:
        """Transport: accept; the handler sees members only."""

        async def accepted(channel: Channel) -> None:
            member = await self._admit(channel)
            if member is not None:
                await handler(member)

        await self._inner.listen(accepted)

    async def dial(self, peer: PeerId, address: str) -> MemberChannel:
        """Transport: open a channel to a member. Raises also NotAMember."""
        if self._state.is_revoked(peer):
            raise NotAMember(f"{peer[:8]} is no longer a member of this swarm")
        inner = await self._inner.dial(peer, address)
        try:
            channel = MemberChannel(inner, self._state)
            _greet(inner, self._state, self._state.present(peer))
            await inner.drain()
            if not self._state.is_member(peer):
                await channel.prove()
        except BaseException:
            inner.abort()
            raise
        self._channels.add(channel)
        return channel

    async def _admit(self, channel: Channel) -> MemberChannel | None:
        """A channel whose dialler is a member, or None when it was answered otherwise."""
        frames = _greeting(channel)
        dropped = self._ungreeted.enter(frames, frames.source)
        if dropped is not None:
            dropped.abort()
        try:
            async with asyncio.timeout(GREETING_TIMEOUT_S):
                return await self._answer(frames, channel)
        except (NetworkError, TimeoutError):
            self.refused += 1
            channel.abort()
        except ShoalError:
            self.refused += 1
            await _refuse(frames)
        finally:
            self._ungreeted.leave(frames)
        return None

    async def _answer(self, frames: FrameChannel, channel: Channel) -> MemberChannel | None:
        message, _ = await frames.receive(GREETING)
        if isinstance(message, MemberHello):
            await _take(frames, message, self._state)
            member = MemberChannel(frames.release(), self._state, proven=True)
            _greet(channel, self._state, self._state.present(channel.peer, message.number))
            await channel.drain()
            self._channels.add(member)
            return member
        await frames.send(Certified(self._certificate(message, channel.peer)), self._state.revocations_data)
        return None

    def _certificate(self, message: Message, peer: PeerId) -> bytes:
        if self._redeemer is not None and isinstance(message, Redeem):
            return self._redeemer.redeem(message.invite, peer, self._state.revocations)
        if self._redeemer is not None and isinstance(message, Renew):
            return self._redeemer.renew(message.certificate, peer, self._state.revocations)
        raise NotAMember("a channel of a private swarm begins with a certificate")


def _greeting(channel: Channel) -> FrameChannel:
    return FrameChannel(channel, max_payload_bytes=0, max_header_bytes=MAX_GREETING_BYTES)


def _acceptors(message: MemberHello | Refusal, peer: PeerId) -> MemberHello:
    """The acceptor's greeting; raises NotAMember when it refuses this side's."""
    if isinstance(message, MemberHello):
        return message
    error = refused(message, peer)
    if isinstance(error, NotAMember):
        raise NotAMember(f"{error} (this node's certificate was refused: it may have been revoked)") from error
    raise error


def _greet(channel: Channel, state: MembershipState, greeting: MemberHello) -> None:
    channel.write(encode_frame(encode_message(greeting)))
    if greeting.news:
        channel.write(encode_frame(encode_message(Revoked()), state.revocations_data))


async def _take(frames: FrameChannel, greeting: MemberHello, state: MembershipState) -> None:
    """Check a greeting, then take the news that it brings; raises NotAMember, and what the channel raises."""
    state.meet(frames.peer, greeting)
    if greeting.news:
        frames.allow_payload(MAX_REVOCATIONS_BYTES)
        _, data = await frames.expect(Revoked)
        _take_news(data, frames.peer, state)


def _take_news(data: bytes, peer: PeerId, state: MembershipState) -> None:
    """Take revocations; raises NotAMember when the peer itself is among them."""
    if state.take(data) and state.is_revoked(peer):
        raise NotAMember(f"{peer[:8]} brought the news that it is revoked")


async def _refuse(frames: FrameChannel) -> None:
    """The same words for everybody, whatever was wrong."""
    try:
        async with asyncio.timeout(1.0):
            await frames.send(refusal(NotAMember(REFUSAL)))
    except (NetworkError, TimeoutError):
        frames.abort()
