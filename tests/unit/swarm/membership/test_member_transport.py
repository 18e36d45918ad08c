"""The gate: both ends show certificates before a byte passes, and whoever is out is cut off."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shoal.errors import ChannelClosed, NotAMember
from shoal.protocol.frames import encode_frame
from shoal.protocol.messages import Certified, GetStatus, MemberHello, Ping, Pong, Redeem, Renew
from shoal.protocol.refusals import refusal
from shoal.swarm.identity import Identity
from shoal.swarm.membership.certificate_issuer import CertificateIssuer, Issuer
from shoal.swarm.membership.credentials import Revocations, sign_revocations
from shoal.swarm.membership.member_transport import (
    GREETING_TIMEOUT_S,
    MAX_UNGREETED,
    REFUSAL,
    MemberChannel,
    MemberTransport,
)
from shoal.swarm.membership.membership_state import MembershipState
from shoal.swarm.membership.storage import SwarmFolder
from shoal.transport.channel import Channel
from shoal.transport.frame_channel import FrameChannel
from shoal.transport.memory_transport import MemoryChannel, MemoryNetwork, MemoryTransport
from shoal.types import PeerId
from tests.support.any_message import ANY
from tests.unit.swarm.directory.test_records import FixedClock
from tests.unit.swarm.membership.statements import NOW, invite
from tests.unit.transport.pipe import Pipe, turns

OWNER = Identity.generate()


def revoking(number: int, *nodes: str) -> bytes:
    """A list that the owner signed."""
    return sign_revocations(Revocations(OWNER.peer, number, frozenset(nodes)), OWNER)


class Node:
    """A node with a gate that answers every ping, and notes who got through."""

    def __init__(self, network: MemoryNetwork, folder: Path, certified: bool = True) -> None:
        self.identity = Identity.generate()
        self.peer = self.identity.peer
        self.plain = MemoryTransport(self.peer, network)
        self.folder = SwarmFolder("home", folder / self.peer[:8])
        self.state = MembershipState(OWNER.peer, self.folder, FixedClock())
        if certified:
            self.state.renewed(Issuer(OWNER.peer, OWNER).certify(self.peer, NOW))
        redeemer = CertificateIssuer(self.peer, Issuer(OWNER.peer, OWNER), self.folder.node("server"), FixedClock())
        self.gate = MemberTransport(self.plain, self.state, redeemer)
        self.served: list[str] = []

    async def pong(self, channel: Channel) -> None:
        """Answers pings until the channel ends."""
        self.served.append(channel.peer)
        frames = FrameChannel(channel)
        while True:
            message, _ = await frames.expect(Ping)
            await frames.send(Pong(message.id, 0.0, 0.0))

    async def dial(self, other: Node) -> FrameChannel:
        """Through the gate."""
        return FrameChannel(await self.gate.dial(other.peer, f"memory://{other.peer}"))

    async def dial_plain(self, other: Node) -> FrameChannel:
        """Around this side's gate."""
        return FrameChannel(await self.plain.dial(other.peer, f"memory://{other.peer}"))


async def ping(frames: FrameChannel, number: int = 1) -> int:
    """One round trip."""
    await frames.send(Ping(number))
    return (await frames.expect(Pong))[0].id


class World:
    """Makes nodes and closes them."""

    def __init__(self, folder: Path) -> None:
        self.network = MemoryNetwork()
        self.folder = folder
        self.nodes: list[Node] = []

    async def node(self, certified: bool = True, listen: bool = True) -> Node:
        """One more."""
        node = Node(self.network, self.folder, certified)
        if listen:
            await node.gate.listen(node.pong)
        self.nodes.append(node)
        return node


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """Nodes on one memory network."""
    world = World(tmp_path)
    yield world
    for node in world.nodes:
        await node.gate.close()


async def test_members_talk(world: World) -> None:
    """Two members that have never met, and then again."""
    one, other = await world.node(), await world.node()
    for number in (1, 2):
        async with await one.dial(other) as frames:
            assert await ping(frames, number) == number
    assert other.served == [one.peer, one.peer]
    assert one.state.is_member(other.peer)
    assert other.state.is_member(one.peer)


async def test_strangers_hear_one_sentence(world: World) -> None:
    """Whatever a node without a certificate says, it gets the same refusal, and the handler never runs."""
    member, stranger = await world.node(), await world.node(certified=False)
    forged = Issuer(PeerId(OWNER.peer), stranger.identity).certify(stranger.peer, NOW)
    firsts = [GetStatus(), MemberHello(b""), MemberHello(forged), Renew(b""), Redeem(b""), Redeem(invite()), Ping(1)]
    said = set()
    for first in firsts:
        async with await stranger.dial_plain(member) as frames:
            await frames.send(first)
            with pytest.raises(NotAMember) as caught:
                await frames.expect(Pong)
            said.add(str(caught.value))
            with pytest.raises(ChannelClosed):
                await frames.receive(ANY)
    assert said == {f"peer {member.peer[:8]}: {REFUSAL}"}
    assert not member.served


async def test_a_member_tells_strangers_nothing(world: World) -> None:
    """A dialler sends its certificate alone to a node that it has not met, and goes no further when none comes back."""
    member, stranger = await world.node(), await world.node(certified=False, listen=False)
    heard: list[object] = []

    async def listen(channel: Channel) -> None:
        frames = FrameChannel(channel)
        heard.append((await frames.receive(ANY))[0])
        await frames.send(MemberHello(Issuer(PeerId(OWNER.peer), stranger.identity).certify(stranger.peer, NOW)))
        heard.append((await frames.receive(ANY))[0])

    await stranger.plain.listen(listen)
    with pytest.raises(NotAMember):
        await member.dial(stranger)
    assert heard == [MemberHello(member.state.certificate)]


async def test_a_revoked_node_is_cut_off_and_not_dialled(world: World) -> None:
    """The list ends its open channels in both directions and the others' go on."""
    one, out, other = [await world.node() for _ in range(3)]
    inbound, outbound, innocent = await out.dial(one), await one.dial(out), await other.dial(one)
    for frames in (inbound, outbound, innocent):
        await ping(frames)
    assert one.state.take(revoking(1, out.peer))
    for frames in (inbound, outbound):
        with pytest.raises(ChannelClosed):
            await ping(frames)
    assert await ping(innocent) == 1
    with pytest.raises(NotAMember):
        await one.dial(out)
    with pytest.raises(NotAMember):
        await ping(await out.dial(one))
    assert one.served.count(out.peer) == 1


async def test_a_refusal_is_told_however_late_it_is_asked_for(world: World) -> None:
    """Who dials, is refused, and only then sends something hears of the refusal and not of the end that followed it."""
    one, out = await world.node(), await world.node()
    await ping(await out.dial(one))
    one.state.take(revoking(1, out.peer))
    frames = await out.dial(one)
    await turns()
    with pytest.raises(NotAMember, match="may have been revoked"):
        await frames.send(Ping(1))


async def test_a_channel_that_a_greeting_ended_says_why(world: World) -> None:
    """To whatever writes to it or waits for room afterwards; one that ended otherwise says that."""
    node, refused, dropped = await world.node(), Pipe(), Pipe()
    for pipe, error in ((refused, NotAMember), (dropped, ChannelClosed)):
        channel = MemberChannel(pipe, node.state)
        if pipe is refused:
            pipe.arrive(refusal(NotAMember(REFUSAL)))
        else:
            pipe.abort()
        assert pipe.ended
        with pytest.raises(error):
            channel.write(b"more")
        with pytest.raises(error):
            await channel.drain()


async def test_the_list_travels_with_greetings(world: World) -> None:
    """It reaches who dials, and who is dialled again; what was sent with the greeting is not lost."""
    one, two, three = [await world.node() for _ in range(3)]
    one.state.take(revoking(7, "0" * 64))
    async with await two.dial(one) as frames:
        assert await ping(frames) == 1
    assert two.state.revocations.number == 7
    for _ in range(2):
        async with await two.dial(three) as frames:
            assert await ping(frames) == 1
    assert three.state.revocations.number == 7


async def test_a_rolled_back_or_forged_list_changes_nothing(world: World) -> None:
    """A member that brings an old list is heard, one that brings a forged list is not; both are ignored."""
    one, two = await world.node(), await world.node()
    one.state.take(revoking(7, "0" * 64))
    for data, heard in ((revoking(6), True), (sign_revocations(Revocations(OWNER.peer, 9), two.identity), False)):
        frames = await two.dial_plain(one)
        await frames.send(MemberHello(two.state.certificate, 9, news=True))
        frames._channel.write(encode_frame(b"\x81\xa4type\xa7revoked", data))
        if heard:
            assert (await frames.expect(MemberHello))[0].number == 7
        else:
            with pytest.raises(NotAMember):
                await frames.expect(MemberHello)
        await frames.close()
    assert one.state.is_revoked(PeerId("0" * 64))


async def test_a_certificate_that_ends_ends_its_channels(world: World) -> None:
    """The sweep drops them unless the node has shown a newer one."""
    one, two = await world.node(), await world.node()
    frames = await two.dial(one)
    await ping(frames)
    one.state._clock.now = NOW + 90_000  # type: ignore[attr-defined]  # the test's clock
    one.gate.sweep()
    with pytest.raises(ChannelClosed):
        await ping(frames)


async def test_silent_strangers_are_bounded(world: World) -> None:
    """Those that were silent longest make room, so a member still gets through."""
    one, member = await world.node(), await world.node()
    silent = [await (await world.node(certified=False, listen=False)).dial_plain(one) for _ in range(MAX_UNGREETED + 5)]
    async with await member.dial(one) as frames:
        assert await ping(frames) == 1
    await asyncio.sleep(0)
    ended = [frames._channel.ended for frames in silent]  # type: ignore[attr-defined]  # a memory channel's
    assert ended[:6] == [True] * 6
    assert not any(ended[6:])
    assert GREETING_TIMEOUT_S <= 5


async def test_silence_from_one_address_costs_no_other(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flood makes room among its own channels; a slow node from elsewhere, however old, keeps its place."""
    connect, hosts = world.network.connect, dict[PeerId, str]()

    def placed(dialler: PeerId, acceptor: PeerId) -> tuple[MemoryChannel, MemoryChannel]:
        near, far = connect(dialler, acceptor)
        far.host = hosts.get(dialler, "10.0.0.1")
        return near, far

    monkeypatch.setattr(world.network, "connect", placed)
    one, slow = await world.node(), await world.node(certified=False, listen=False)
    hosts[slow.peer] = "10.0.0.2"
    first = await slow.dial_plain(one)
    flood = [await (await world.node(certified=False, listen=False)).dial_plain(one) for _ in range(MAX_UNGREETED + 5)]
    await asyncio.sleep(0)
    assert not first._channel.ended  # type: ignore[attr-defined]  # a memory channel's
    assert sum(frames._channel.ended for frames in flood) == 6  # type: ignore[attr-defined]


async def test_strangers_cannot_send_much(world: World) -> None:
    """A large header or any payload is refused at its first 24 bytes."""
    one, stranger = await world.node(), await world.node(certified=False)
    for frame in (encode_frame(b"\x80" * 5000)[:24], encode_frame(b"\x80", b"payload")[:24]):
        frames = await stranger.dial_plain(one)
        frames._channel.write(frame)
        with pytest.raises(NotAMember):
            await frames.expect(Pong)
        await frames.close()


async def test_redeem_and_renew(world: World) -> None:
    """A redeemer turns an invite into a certificate for the key that asked, and that into the next one."""
    owner, fresh = await world.node(), await world.node(certified=False)
    owner.state.take(revoking(3, "0" * 64))
    async with await fresh.dial_plain(owner) as frames:
        frames.allow_payload(1 << 20)
        await frames.send(Redeem(invite(OWNER, redeemer=owner.peer)))
        certified, revocations = await frames.expect(Certified)
    fresh.state.renewed(certified.certificate)
    assert fresh.state.take(revocations)
    async with await fresh.dial(owner) as frames:
        assert await ping(frames) == 1
    async with await fresh.dial_plain(owner) as frames:
        await frames.send(Renew(certified.certificate))
        renewed, _ = await frames.expect(Certified)
    assert owner.state.meet(fresh.peer, MemberHello(renewed.certificate)) is None
