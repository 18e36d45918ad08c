"""The gate of a private swarm: a transport on which nothing passes before both ends have shown a certificate.

Each side's first message is `present`. The dialler's travels together with whatever it says next, if it has met that
member before; with a node that it has not met, it waits for the answer first, so that only members ever hear more. The
acceptor shows its own certificate only when the dialler's is good. Strangers get one constant refusal.
"""

from __future__ import annotations

import asyncio
import weakref

from shoal.errors import NetworkError, NotAMember, ShoalError
from shoal.protocol.messages import (
    GREETING,
    MAX_REVOCATIONS_BYTES,
    Certified,
    MemberHello,
    Message,
    Redeem,
    Renew,
    Revoked,
)
from shoal.protocol.refusals import refusal
from shoal.swarm.membership.certificate_issuer import CertificateIssuer
from shoal.swarm.membership.membership_state import MembershipState
from shoal.transport.channel import RECEIVE_BYTES, Channel, ChannelHandler, PromptChannel, Tap, Transport
from shoal.transport.frame_channel import FrameChannel
from shoal.types import PeerId

GREETING_TIMEOUT_S = 3.0
"""How long an accepted channel may take to show a certificate; honest ones come with it."""

MAX_UNGREETED = 128
"""Channels that have shown nothing yet; one more drops the oldest, since members are through in no time."""

MAX_GREETING_BYTES = 4096
"""The largest header before a peer is known to be a member; there is no payload."""

REFUSAL = "only members of this swarm are answered; an invite makes one"


class MemberChannel:
    """A channel to a member. Made by the dialler, it may still have to read the other side's greeting."""

    def __init__(self, inner: Channel, state: MembershipState, rest: bytes = b"", proven: bool = False) -> None:
        self._prompt = inner if isinstance(inner, PromptChannel) else None
        self._inner = inner
        self._roll = state
        self._rest = rest
        self._proven = proven

    @property
    def peer(self) -> PeerId:
        """Channel: the node at the other end."""
        return self._inner.peer

    @property
    def transport(self) -> str:
        """Channel: the wrapped transport's name."""
        return self._inner.transport

    async def prove(self) -> None:
        """Read the acceptor's greeting. Raises NotAMember when it refuses or is none itself, and drops the channel."""
        frames = _greeting(self._inner)
        try:
            greeting = await _greeting_of(frames)
            await _take(frames, greeting, self._roll)
        except ShoalError:
            self._inner.abort()
            raise
        self._proven, self._rest = True, frames.take_rest()

    async def send(self, data: bytes | bytearray) -> None:
        """Channel: hand over bytes."""
        await self._inner.send(data)

    @property
    def sends_now(self) -> bool:
        """PromptChannel: if the wrapped channel is one."""
        return self._prompt is not None and self._prompt.sends_now

    def send_now(self, data: bytes | bytearray) -> None:
        """PromptChannel: hand over bytes."""
        assert self._prompt is not None
        self._prompt.send_now(data)

    def tap(self, tap: Tap | None) -> None:
        """PromptChannel: nothing is shown before the greeting and what came with it were read."""
        if self._prompt is not None:
            self._prompt.tap(tap and (lambda data: self._proven and not self._rest and tap(data)))

    async def receive(self) -> bytes:
        """Channel: the next bytes, after the other side's greeting."""
        if not self._proven:
            await self.prove()
        if not self._rest:
            return await self._inner.receive()
        head, self._rest = self._rest[:RECEIVE_BYTES], self._rest[RECEIVE_BYTES:]
        return head

    async def close(self) -> None:
        """Channel: flush and end."""
        await self._inner.close()

    def abort(self) -> None:
        """Channel: drop at once."""
        self._inner.abort()


class MemberTransport:
    """Any transport, for one private swarm. With a redeemer, it also answers those who want to become members.

    `refused` counts the channels that were not let in.
    """

    def __init__(self, inner: Transport, state: MembershipState, redeemer: CertificateIssuer | None = None) -> None:
        self._inner = inner
        self._roll = state
        self._redeemer = redeemer
        self.refused = 0
        self._ungreeted: dict[int, Channel] = {}
        self._channels: weakref.WeakSet[MemberChannel] = weakref.WeakSet()
        state.on_change.append(self.sweep)

    @property
    def name(self) -> str:
        """Transport: the wrapped one's name."""
        return self._inner.name

    @property
    def addresses(self) -> tuple[str, ...]:
        """Transport: the wrapped one's addresses."""
        return self._inner.addresses

    def sweep(self) -> None:
        """Drop the channels of nodes that are members no longer; those who have a newer certificate dial again."""
        for channel in list(self._channels):
            if not self._roll.is_member(channel.peer):
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
        if self._roll.is_revoked(peer):
            raise NotAMember(f"{peer[:8]} is no longer a member of this swarm")
        inner = await self._inner.dial(peer, address)
        try:
            channel = MemberChannel(inner, self._roll)
            await _greet(_greeting(inner), self._roll, self._roll.present(peer))
            if not self._roll.is_member(peer):
                await channel.prove()
        except BaseException:
            inner.abort()
            raise
        self._channels.add(channel)
        return channel

    async def close(self) -> None:
        """Transport: stop accepting, end every channel."""
        await self._inner.close()

    async def _admit(self, channel: Channel) -> MemberChannel | None:
        """A channel whose dialler is a member, or None when it was answered otherwise."""
        if len(self._ungreeted) >= MAX_UNGREETED:
            self._ungreeted.pop(next(iter(self._ungreeted))).abort()
        self._ungreeted[id(channel)] = channel
        frames = _greeting(channel)
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
            self._ungreeted.pop(id(channel), None)
        return None

    async def _answer(self, frames: FrameChannel, channel: Channel) -> MemberChannel | None:
        message, _ = await frames.receive(GREETING)
        if isinstance(message, MemberHello):
            await _take(frames, message, self._roll)
            member = MemberChannel(channel, self._roll, frames.take_rest(), proven=True)
            await _greet(frames, self._roll, self._roll.present(channel.peer, message.number))
            self._channels.add(member)
            return member
        await frames.send(Certified(self._certificate(message, channel.peer)), self._roll.revocations_data)
        return None

    def _certificate(self, message: Message, peer: PeerId) -> bytes:
        if self._redeemer is not None and isinstance(message, Redeem):
            return self._redeemer.redeem(message.invite, peer, self._roll.revocations)
        if self._redeemer is not None and isinstance(message, Renew):
            return self._redeemer.renew(message.certificate, peer, self._roll.revocations)
        raise NotAMember("a channel of a private swarm begins with a certificate")


def _greeting(channel: Channel) -> FrameChannel:
    return FrameChannel(channel, max_payload_bytes=0, max_header_bytes=MAX_GREETING_BYTES)


async def _greeting_of(frames: FrameChannel) -> MemberHello:
    """The acceptor's greeting; raises NotAMember when it refuses this side's."""
    try:
        return (await frames.expect(MemberHello))[0]
    except NotAMember as error:
        raise NotAMember(f"{error} (this node's certificate was refused: it may have been revoked)") from error


async def _greet(frames: FrameChannel, state: MembershipState, greeting: MemberHello) -> None:
    await frames.send(greeting)
    if greeting.news:
        await frames.send(Revoked(), state.revocations_data)


async def _take(frames: FrameChannel, greeting: MemberHello, state: MembershipState) -> None:
    """Check a greeting, then take the news that it brings; raises NotAMember, and what the channel raises."""
    state.meet(frames.peer, greeting)
    if not greeting.news:
        return
    frames.allow_payload(MAX_REVOCATIONS_BYTES)
    _, data = await frames.expect(Revoked)
    if state.take(data) and state.is_revoked(frames.peer):
        raise NotAMember(f"{frames.peer[:8]} brought the news that it is revoked")


async def _refuse(frames: FrameChannel) -> None:
    """The same words for everybody, whatever was wrong."""
    try:
        async with asyncio.timeout(1.0):
            await frames.send(refusal(NotAMember(REFUSAL)))
    except (NetworkError, TimeoutError):
        frames.abort()
