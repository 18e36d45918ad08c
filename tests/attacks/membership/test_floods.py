"""Too large, too slow, too many: members are served as before."""

from __future__ import annotations

import asyncio
import contextlib
import os
import struct
from collections.abc import Callable

import msgspec
import pytest

from shoal.errors import DialError, ShoalError
from shoal.protocol.frames import MAX_HEADER_BYTES, encode_frame
from shoal.protocol.messages import (
    MAX_CERTIFICATE_BYTES,
    MAX_REVOCATIONS_BYTES,
    GetStatus,
    MemberHello,
    RecordBatch,
    RecordDigest,
    Redeem,
    Refusal,
    encode_message,
)
from shoal.server.channel_dispatcher import MAX_CHANNELS_PER_PEER
from shoal.swarm.directory.directory import MAX_EXCHANGES_PER_MINUTE, MAX_LOOKED_AT_PER_MINUTE, MAX_RECORDS
from shoal.swarm.membership.member_transport import GREETING_TIMEOUT_S, MAX_GREETING_BYTES, MAX_UNGREETED
from shoal.transport.address import host_port
from shoal.transport.channel import MAX_PENDING_HANDSHAKES
from tests.attacks.membership.attackers import REFUSED, Honest, Outsider, certificate, dial, push, refused
from tests.private import PrivateServers
from tests.support.any_message import ANY
from tests.support.virtual_clock import VirtualClock
from tests.swarms import until

DIALS = 2000


def prefix(header: int, payload: int) -> bytes:
    """A frame's first 24 bytes, which promise this much."""
    return struct.pack("<4sB3sII8s", b"SHOL", 1, b"\0\0\0", header, payload, bytes(8))


async def test_oversized_greetings(swarm: PrivateServers, honest: Honest, outsider: Outsider) -> None:
    """Frames, headers, certificates and invites beyond their bounds, from outside: refused by their first 24 bytes."""
    proof = certificate(swarm, outsider.key.peer, swarm.owner)
    async with honest.unharmed():
        for promised in (
            prefix(4, 1),
            prefix(MAX_GREETING_BYTES + 1, 0),
            prefix(MAX_HEADER_BYTES + 1, 0),
            prefix(4, 1 << 24),
            prefix(2**32 - 1, 2**32 - 1),
        ):
            assert await outsider.hears(promised) == REFUSED
        for said in (
            encode_frame(b"\x81\xa4type" + b"\x91" * 3000),
            encode_frame(msgspec.msgpack.encode(MemberHello(proof + bytes(MAX_CERTIFICATE_BYTES)))),
            encode_frame(msgspec.msgpack.encode(Redeem(bytes(2049)))),
            prefix(4000, 0) + os.urandom(1 << 20),
        ):
            await outsider.learns_nothing(said)


async def test_oversized_messages_from_inside(swarm: PrivateServers, honest: Honest, outsider: Outsider) -> None:
    """Lists, digests and frames beyond their bounds, from somebody with a certificate."""
    greeting = encode_frame(
        encode_message(MemberHello(certificate(swarm, outsider.key.peer, swarm.owner), 9, news=True))
    )
    header = b"\x81\xa4type\xa7revoked"
    async with honest.unharmed():
        assert await outsider.hears(greeting, prefix(len(header), MAX_REVOCATIONS_BYTES + 1)) == REFUSED
        await outsider.learns_nothing(greeting, encode_frame(header, bytes(300_000)))
        async with swarm.client("insider") as insider:
            server = swarm.servers[0]
            for digest in (b"x" * 41, bytes(40 * (MAX_RECORDS + 1))):
                await refused(insider, server, RecordDigest(), payload=digest)
            channel = await dial(insider, server)
            channel._channel.write(prefix(4, (1 << 20) + 1))
            answer, _ = await channel.receive(ANY)
            assert isinstance(answer, Refusal)
            assert "payload" in answer.message
            await channel.close()


async def test_slow_strangers(swarm: PrivateServers, honest: Honest, outsider: Outsider) -> None:
    """Hundreds of channels that say one byte now and then: the oldest make room, the rest end at the deadline."""
    server = swarm.servers[0]
    begun = encode_frame(encode_message(MemberHello(bytes(500))))
    ungreeted = server.network.member._gates[0]._ungreeted  # type: ignore[union-attr]
    async with honest.unharmed():
        slow = [await outsider.dial(server) for _ in range(MAX_UNGREETED + 40)]
        for at in range(2):
            for channel in slow:
                with contextlib.suppress(ShoalError):
                    await channel.send(begun[at : at + 1])
        await until(lambda: len(ungreeted) == MAX_UNGREETED)
        async with swarm.client("honest", invite="") as client:
            assert client.records()
        await until(lambda: not ungreeted, timeout_s=GREETING_TIMEOUT_S + 10)


async def test_thousands_of_dials(swarm: PrivateServers, honest: Honest, outsider: Outsider) -> None:
    """Two thousand connections in a row, silent or with a handshake, while a member generates and another one joins."""
    server = swarm.servers[0]
    host, port = host_port(server.addresses[0], "tls")
    unproven = server.network.member._gates[0]._inner._tasks._unproven  # type: ignore[union-attr,attr-defined]
    ends: list[Callable[[], object]] = []

    async def knock(number: int) -> Callable[[], object]:
        if number % 20 == 0:
            with contextlib.suppress(DialError):  # pushed out by the next ones
                return (await outsider.dial(server)).abort
        raw, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, host, port)
        return raw.abort

    async with honest.unharmed():
        for batch in range(0, DIALS, 200):  # each is held until the next one stands
            before, ends = ends, await asyncio.gather(*(knock(number) for number in range(batch, batch + 200)))
            assert len(unproven) <= MAX_PENDING_HANDSHAKES
            if batch == DIALS // 2:
                async with swarm.client("newcomer") as client:
                    assert client.records()
            for end in before:
                end()
        for end in ends:
            end()


async def test_hoarded_channels(swarm: PrivateServers, honest: Honest) -> None:
    """An insider opens channels and says nothing: beyond its share it is refused, and nobody else is."""
    server = swarm.servers[0]
    async with honest.unharmed(), swarm.client("insider") as insider:
        held = [await dial(insider, server) for _ in range(MAX_CHANNELS_PER_PEER)]
        assert "of this node" in await refused(insider, server, GetStatus())
        async with swarm.client("newcomer") as client:
            assert client.records()
        for channel in held:
            channel.abort()


async def test_endless_exchanges(swarm: PrivateServers, honest: Honest, monkeypatch: pytest.MonkeyPatch) -> None:
    """An insider asks for everything again and again: it is told to wait, others are answered."""
    server = swarm.servers[0]
    # However slow this machine is: all of it happens within a minute, and nothing comes back meanwhile.
    for buckets in server.directory._limits.exchanges:
        monkeypatch.setattr(buckets, "_clock", VirtualClock())
    async with honest.unharmed(), swarm.client("insider") as insider:
        for _ in range(MAX_EXCHANGES_PER_MINUTE):
            channel = await dial(insider, server)
            await channel.send(RecordDigest())
            if not isinstance((await channel.receive(ANY))[0], RecordBatch):
                break
            channel.abort()
        assert "exchanges" in await refused(insider, server, RecordDigest())
        assert server.directory.dropped["too often"] >= 1


async def test_records_without_end(swarm: PrivateServers, honest: Honest) -> None:
    """An insider sends tens of thousands: beyond its minute's worth none is even looked at, and others' are."""
    server = swarm.servers[0]
    async with honest.unharmed(), swarm.client("insider") as insider:
        for _ in range(5):
            await push(insider, server, *[(b"junk", b"")] * (MAX_LOOKED_AT_PER_MINUTE - 1))
        await until(lambda: server.directory.dropped["too many"] > 3 * MAX_LOOKED_AT_PER_MINUTE)
        assert server.directory.dropped["invalid"] <= MAX_LOOKED_AT_PER_MINUTE + 200
        async with contextlib.AsyncExitStack() as stack:
            third = await swarm.serve(stack, swarm.servers[1].record.span, "third", invite=swarm.invite())
            await until(lambda: server.directory.get(third.identity.peer) is not None)
            swarm.servers.remove(third)
