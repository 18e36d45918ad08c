"""Hostile bytes and messages against a real server over TLS: refused or cut off, and the server lives."""

from __future__ import annotations

import asyncio
import math
import os
import struct
import time
from collections.abc import AsyncIterator

import msgspec
import pytest

from shoal.client.client import AsyncClient
from shoal.client.session.hop_client import HopClient, SessionCredentials
from shoal.engine.proof import numbers
from shoal.errors import ChannelClosed, GrantExceeded, ShoalError, UnknownQuestion
from shoal.model.families import family
from shoal.protocol.frames import MAGIC, encode_frame
from shoal.protocol.messages import (
    STATUS,
    Attach,
    Describe,
    GetStatus,
    HopTrace,
    LinkGrant,
    Message,
    Open,
    Opened,
    Ping,
    Question,
    ReceivedUpTo,
    RecordDigest,
    Redirect,
    Refusal,
    Rewind,
    RowsFrame,
    Status,
)
from shoal.protocol.row_stream import Sender
from shoal.server.server import Server
from shoal.swarm.directory.records import Acceptance, sign_acceptance
from shoal.transport.frame_channel import FrameChannel
from shoal.types import Hop, PeerId, Span
from tests.support.any_message import ANY
from tests.swarms import Swarm, SwarmMaker, until

ROW = 48 * 4


@pytest.fixture
async def swarm(swarm_of: SwarmMaker) -> AsyncIterator[Swarm]:
    """One server of all blocks."""
    async with swarm_of(Span(0, 6)) as swarm:
        yield swarm


async def dial(client: AsyncClient, server: Server) -> FrameChannel:
    """A fresh channel to a server."""
    return FrameChannel(await client.dialler.dial(PeerId(server.record.peer), server.addresses))


async def answers(client: AsyncClient, server: Server) -> bool:
    """Whether the server still serves an honest client from end to end."""
    spec = await client.find_model()
    async with client.session(spec, max_tokens=8) as session:
        output = await session.step(numbers(1, 3, 48))
    return output.shape == (3, 48)


def prefix(
    magic: bytes = MAGIC, version: int = 1, reserved: bytes = b"\0\0\0", header: int = 4, payload: int = 0
) -> bytes:
    """A frame's first 24 bytes."""
    return struct.pack("<4sB3sII8s", magic, version, reserved, header, payload, b"\0" * 8)


GARBAGE = {
    "noise": os.urandom(4096),
    "http": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "wrong magic": prefix(magic=b"SHOE"),
    "wrong version": prefix(version=9),
    "reserved bytes": prefix(reserved=b"\0\1\0"),
    "empty header": prefix(header=0),
    "huge header": prefix(header=2**32 - 1),
    "huge payload": prefix(payload=2**32 - 1),
    "wrong hash": prefix() + b"\x81\xa4type",
    "not msgpack": bytes(encode_frame(b"\xc1\xc1\xc1")),
    "unknown type": bytes(encode_frame(b"\x81\xa4type\xa5hello")),
    "no type": bytes(encode_frame(b"\x80")),
    "deep nesting": bytes(encode_frame(b"\x91" * 60_000)),
    "lying array": bytes(encode_frame(b"\x82\xa4type\xa4rows\xa5trace\xdd\xff\xff\xff\xff")),
}


@pytest.mark.parametrize("name", GARBAGE)
async def test_garbage_is_cut_off(swarm: Swarm, name: str) -> None:
    """Bytes that are no message end the channel, not the server."""
    async with swarm.client() as client:
        channel = await dial(client, swarm.servers[0])
        channel._channel.write(GARBAGE[name])
        with pytest.raises(ShoalError):
            await channel.expect(Status)
        with pytest.raises(ChannelClosed):
            await channel.receive(ANY)
        await channel.close()
        assert await answers(client, swarm.servers[0])


def request(server: Server, **changes: object) -> Open:
    """An honest request for a session, with changes."""
    me = "ab" * 32
    fields: dict[str, object] = {
        "session": b"s" * 16,
        "incarnation": 0,
        "secret": b"k" * 16,
        "fingerprint": server.record.model.fingerprint,
        "span": Span(0, 6),
        "max_tokens": 16,
        "upstream": LinkGrant(1, me, b"t" * 16),
        **changes,
    }
    return Open(**fields)  # type: ignore[arg-type]


REFUSED: dict[str, tuple[dict[str, object], str]] = {
    "another model": ({"fingerprint": "f" * 32}, "model"),
    "a block too many": ({"span": Span(0, 7)}, "span"),
    "no block": ({"span": Span(3, 3)}, "span"),
    "too many tokens": ({"max_tokens": 1 << 20}, "grant"),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_requests_that_cannot_be_met(swarm: Swarm, name: str) -> None:
    """Each is refused with its own code."""
    changes, code = REFUSED[name]
    async with swarm.client() as client:
        async with await dial(client, swarm.servers[0]) as channel:
            await channel.send(request(swarm.servers[0], **changes))
            message, _ = await channel.receive(ANY)
            assert isinstance(message, Refusal)
            assert message.code == code
        assert swarm.servers[0].status().sessions == 0


@pytest.mark.parametrize("span", [[4, 2], [-1, 2], [0, 1 << 20], [0, 1 << 63]])
async def test_spans_that_no_model_has(swarm: Swarm, span: list[int]) -> None:
    """Blocks backwards, below zero or beyond every model break the specification."""
    fields = msgspec.to_builtins(request(swarm.servers[0]), builtin_types=(bytes,)) | {"span": span}
    async with swarm.client() as client, await dial(client, swarm.servers[0]) as channel:
        channel._channel.write(encode_frame(msgspec.msgpack.encode(fields)))
        message, _ = await channel.receive(ANY)
        assert isinstance(message, Refusal)
        assert message.code == "protocol"


class Usage(Message, frozen=True, tag="usage"):
    """A question of a later version."""


async def test_a_question_of_a_later_version(swarm: Swarm) -> None:
    """Its asker learns that the server does not know it, which is nobody's fault, and may ask something else."""
    usage = Question(Usage, Usage, per_span=False)
    async with swarm.client() as client:
        async with await dial(client, swarm.servers[0]) as channel:
            with pytest.raises(UnknownQuestion, match="usage"):
                await channel.ask(usage, Usage())
        async with await dial(client, swarm.servers[0]) as channel:
            await channel.ask(STATUS, GetStatus())


async def test_rows_on_a_control_channel(swarm: Swarm) -> None:
    """What has its place on a link is not even read on a control channel."""
    async with swarm.client() as client:
        control, link = await linked(client, swarm.servers[0])
        await control.send(RowsFrame(0, 0, 1, 0), b"\0" * ROW)
        message, _ = await control.receive(ANY)
        assert isinstance(message, Refusal)
        assert (message.code, "control channel" in message.message) == ("protocol", True)
        await link.close()
        await control.close()


async def test_a_codec_that_is_not_proven_is_refused(swarm_of: SwarmMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A family that loses too much in 16 bits offers fp32 only."""
    only_fp32 = msgspec.structs.replace(family("llama"), row_codecs=("fp32",))
    monkeypatch.setattr("shoal.server.hosting.span_loading.family", lambda model_type: only_fp32)
    async with swarm_of(Span(0, 6)) as swarm, swarm.client() as client:
        async with await dial(client, swarm.servers[0]) as channel:
            await channel.send(request(swarm.servers[0], row_codec="bf16"))
            message, _ = await channel.receive(ANY)
            assert isinstance(message, Refusal)
            assert message.code == "unsupported"


OUT_OF_PLACE: dict[str, Message] = {
    "ping": Ping(1),
    "rows": RowsFrame(0, 0, 1, 0),
    "status": Status(0, 0, 0, 0, 0, 0.0, 0.0, 0.0),
    "have": ReceivedUpTo(0, 0),
    "no such session": Attach("control", b"x" * 16, 0, b"k" * 16),
    "no such link": Attach("send", b"x" * 16, 0, b"k" * 16),
    "another model's description": Describe("f" * 32),
}


@pytest.mark.parametrize("name", OUT_OF_PLACE)
async def test_messages_out_of_place(swarm: Swarm, name: str) -> None:
    """A first message that opens nothing is refused."""
    async with swarm.client() as client, await dial(client, swarm.servers[0]) as channel:
        await channel.send(OUT_OF_PLACE[name])
        message, _ = await channel.receive(ANY)
        assert isinstance(message, Refusal)


@pytest.mark.parametrize("digest", [b"x", b"x" * 41, b"\0" * 40 * 5000])
async def test_broken_digests(swarm: Swarm, digest: bytes) -> None:
    """A digest that is cut off or too long is refused."""
    async with swarm.client() as client, await dial(client, swarm.servers[0]) as channel:
        await channel.send(RecordDigest(), digest)
        message, _ = await channel.receive(ANY)
        assert isinstance(message, Refusal)


async def linked(client: AsyncClient, server: Server) -> tuple[FrameChannel, FrameChannel]:
    """A session's control channel and the link into it, both in our hands."""
    control = await dial(client, server)
    await control.send(request(server, upstream=LinkGrant(1, client.identity.peer, b"t" * 16)))
    await control.receive(ANY)
    link = await dial(client, server)
    await link.send(Attach("send", b"s" * 16, 0, b"t" * 16, 1))
    message, _ = await link.receive(ANY)
    assert message == ReceivedUpTo(0, 0)
    return control, link


async def test_several_openings_of_one_session(swarm: Swarm) -> None:
    """One is answered, others while it is under way are refused with a code of their own, and all its channels live."""
    server = swarm.servers[0]
    async with swarm.client() as client:
        channels = [await dial(client, server) for _ in range(8)]
        waiting = asyncio.ensure_future(server.worker.between_steps(lambda: time.sleep(0.2)))
        said = await asyncio.gather(*(ask_open(channel, server) for channel in channels))
        await waiting
        kinds = [answer.code if isinstance(answer, Refusal) else "opened" for answer in said]
        assert kinds.count("opened") == 1
        assert kinds.count("busy") == 7
        async with await dial(client, server) as again:
            assert isinstance(await ask_open(again, server), Opened)  # its answer may be asked for again
            async with await dial(client, server) as thief:
                refused = await ask_open(thief, server, secret=b"x" * 16)
            assert isinstance(refused, Refusal)
            assert refused.code == "session"
        for channel in channels:
            await channel.close()
        assert await answers(client, server)


async def ask_open(channel: FrameChannel, server: Server, **changes: object) -> Message:
    """What a server says to who opens a session."""
    await channel.send(request(server, **changes))
    return (await channel.receive(ANY))[0]


async def test_more_than_a_cache_can_ever_hold(swarm_of: SwarmMaker) -> None:
    """It is refused for good, with what would fit; what fits beside nothing else now may fit later."""
    async with swarm_of(Span(0, 6), memory_bytes=64 << 20) as swarm, swarm.client() as client:
        server = swarm.servers[0]
        server.sessions.pages.capacity = 6 * 2
        async with await dial(client, server) as channel:
            refused = await ask_open(channel, server, max_tokens=129)
            assert isinstance(refused, Refusal)
            assert refused.code == "grant"
            assert "room for 128" in refused.message
        async with await dial(client, server) as channel:
            assert isinstance(await ask_open(channel, server, max_tokens=128), Opened)
            async with await dial(client, server) as other:
                full = await ask_open(other, server, session=b"o" * 16)
                assert isinstance(full, Refusal)
                assert full.code == "full"
        with pytest.raises(GrantExceeded, match="Lower max_tokens"):
            async with client.session(await client.find_model(), max_tokens=500):
                pass


BAD_ROWS: dict[str, tuple[RowsFrame, bytes]] = {
    "bytes missing": (RowsFrame(0, 0, 2, 0), b"\0" * ROW),
    "bytes too many": (RowsFrame(0, 0, 1, 0), b"\0" * 2 * ROW),
    "another dtype": (RowsFrame(0, 0, 1, 0), b"\0" * (ROW // 2)),
    "beyond the grant": (RowsFrame(0, 0, 17, 0), b"\0" * 17 * ROW),
    "elided on the way in": (RowsFrame(0, 0, 2, 0, elided=1), b"\0" * ROW),
    "all elided on the way in": (RowsFrame(0, 0, 2, 0, elided=2), b""),
    "not a number": (RowsFrame(0, 0, 1, 0), struct.pack("<f", math.nan) * 48),
    "one infinite number": (RowsFrame(0, 0, 1, 0), b"\0" * (ROW - 4) + struct.pack("<f", math.inf)),
    "a trace without room for this hop": (RowsFrame(0, 0, 1, 0, trace=(HopTrace(0.0, 0.0, 0.0),) * 128), b"\0" * ROW),
}


@pytest.mark.parametrize("name", BAD_ROWS)
async def test_rows_that_cannot_be(swarm: Swarm, name: str) -> None:
    """Rows of the wrong form end the link; the session takes honest ones afterwards from where it was."""
    rows, payload = BAD_ROWS[name]
    server = swarm.servers[0]
    async with swarm.client() as client:
        control, link = await linked(client, server)
        await link.send(rows, payload)
        message, _ = await link.receive(ANY)
        assert isinstance(message, Refusal)
        await link.close()
        async with await dial(client, server) as again:
            await again.send(Attach("send", b"s" * 16, 0, b"t" * 16, 1))
            assert (await again.receive(ANY))[0] == ReceivedUpTo(0, 0)
        await control.close()


async def test_rows_from_the_future_are_asked_for(swarm: Swarm) -> None:
    """A gap is answered with the position wanted; epochs that nobody announced too."""
    async with swarm.client() as client:
        control, link = await linked(client, swarm.servers[0])
        await link.send(RowsFrame(0, 5, 1, 0), b"\0" * ROW)
        await link.send(RowsFrame(7, 0, 1, 6), b"\0" * ROW)
        await link.send(RowsFrame(0, 0, 1, 0), b"\0" * ROW)
        await until(lambda: next(iter(swarm.servers[0].sessions)).receiver.position == 1)
        await link.send(RowsFrame(0, 9, 1, 0), b"\0" * ROW)
        assert (await link.receive(ANY))[0] == ReceivedUpTo(0, 1)
        await link.close()
        await control.close()


@pytest.mark.parametrize(
    "attach",
    [
        Attach("send", b"s" * 16, 0, b"T" * 16, 1),
        Attach("send", b"s" * 16, 0, b"t" * 16, 0),
        Attach("send", b"s" * 16, 0, b"t" * 16, 2),
        Attach("receive", b"s" * 16, 0, b"t" * 16, 1),
        Attach("control", b"s" * 16, 0, b"K" * 16),
    ],
)
async def test_links_of_others(swarm: Swarm, attach: Attach) -> None:
    """A wrong token, generation, role or secret attaches to nothing, and the session goes on."""
    async with swarm.client() as client, swarm.client() as stranger:
        control, link = await linked(client, swarm.servers[0])
        for attacker in (stranger, client):
            async with await dial(attacker, swarm.servers[0]) as channel:
                await channel.send(attach)
                assert isinstance((await channel.receive(ANY))[0], Refusal)
        async with await dial(stranger, swarm.servers[0]) as channel:
            await channel.send(Attach("send", b"s" * 16, 0, b"t" * 16, 1))  # right in all but the node
            assert isinstance((await channel.receive(ANY))[0], Refusal)
        await link.send(RowsFrame(0, 0, 1, 0), b"\0" * ROW)
        await until(lambda: next(iter(swarm.servers[0].sessions)).receiver.position == 1)
        await link.close()
        await control.close()


async def test_a_redirect_needs_the_targets_word(swarm: Swarm) -> None:
    """A hop dials nobody who has not agreed: no record, a stranger's word, or one for another hop, link or time."""
    server = swarm.servers[0]
    async with swarm.client() as client:
        signed = server.directory.get(PeerId(server.record.peer))
        assert signed is not None
        peer = server.record.peer
        honest = Acceptance(b"s" * 16, peer, peer, 1, 4e9)
        other_hop = msgspec.structs.replace(honest, upstream=client.identity.peer)
        other_link = msgspec.structs.replace(honest, generation=2)
        expired = msgspec.structs.replace(honest, expires_at=1e9)
        for record, acceptance in (
            (b"", b""),
            (signed.data, b""),
            (signed.data, sign_acceptance(honest, client.identity)),
            (signed.data, sign_acceptance(other_hop, server.identity)),
            (signed.data, sign_acceptance(other_link, server.identity)),
            (signed.data, sign_acceptance(expired, server.identity)),
        ):
            control, link = await linked(client, server)
            await link.close()
            await control.send(Redirect(LinkGrant(1, server.record.peer, b"u" * 16), record, acceptance))
            assert isinstance((await control.receive(ANY))[0], Refusal)
            await control.close()


async def test_orders_that_make_no_sense(swarm: Swarm) -> None:
    """Rewinds that are old or from nowhere change nothing; other messages end the control channel."""
    async with swarm.client() as client:
        control, link = await linked(client, swarm.servers[0])
        await link.send(RowsFrame(0, 0, 4, 0), b"\0" * 4 * ROW)
        held = next(iter(swarm.servers[0].sessions))
        await until(lambda: held.receiver.position == 4)
        await control.send(Rewind(0, 0, 0))
        await control.send(Rewind(9, 0, 8))
        await control.send(ReceivedUpTo(0, 0))
        assert isinstance((await control.receive(ANY))[0], Refusal)
        assert (held.receiver.epoch, held.receiver.position) == (0, 4)
        await link.close()
        await control.close()


async def test_a_session_is_not_opened_twice_by_others(swarm: Swarm) -> None:
    """An open with the same id and another secret finds nothing to take over."""
    server = swarm.servers[0]
    async with swarm.client() as client, swarm.client() as thief:
        control, link = await linked(client, server)
        async with await dial(thief, server) as channel:
            await channel.send(request(server, secret=b"z" * 16))
            assert isinstance((await channel.receive(ANY))[0], Refusal)
        keys = SessionCredentials(b"s" * 16, b"k" * 16)
        record = thief.directory.get(PeerId(server.record.peer))
        assert record is not None
        hop = HopClient(
            Hop(PeerId(server.record.peer), Span(0, 6)), record, keys, client.dialler, client.clock, lambda: None
        )
        await hop.open(request(server, upstream=LinkGrant(1, client.identity.peer, b"t" * 16)), Sender())
        assert hop.heartbeat.progress.position == 0
        await hop.close()
        await link.close()
        control.abort()
