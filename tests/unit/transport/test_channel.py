"""What every transport promises (shoal.transport.channel), on each of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from random import Random

import pytest
import pytest_asyncio

from shoal.errors import ChannelClosed, DialError, IdentityError, UsageError
from shoal.transport.byte_stream import RECEIVE_BYTES, ByteStream
from shoal.transport.channel import Channel
from tests.unit.transport.nodes import KINDS, WAIT_S, Net, Node, echo, read_all, read_exactly, stalled, until

MB = 1024 * 1024


@pytest_asyncio.fixture(params=KINDS)
async def net(request: pytest.FixtureRequest) -> AsyncIterator[Net]:
    """Nodes on each transport in turn."""
    async with Net(request.param) as made:
        yield made


class Held:
    """A handler that keeps its channel for the test."""

    def __init__(self) -> None:
        self.channels: list[ByteStream] = []
        self.release = asyncio.Event()

    async def __call__(self, channel: ByteStream) -> None:
        self.channels.append(channel)
        await self.release.wait()

    async def channel(self) -> ByteStream:
        await until(lambda: self.channels)
        return self.channels[0]


async def connected(net: Net) -> tuple[ByteStream, ByteStream, Held]:
    """Both ends of a new channel, the dialler's first."""
    held = Held()
    server = await net.server(held)
    near = await net.node().dial(server)
    return near, await held.channel(), held


@pytest.mark.parametrize("size", [1, 1000, RECEIVE_BYTES, MB + 1, 8 * MB])
async def test_echo(net: Net, size: int) -> None:
    """Bytes of any number come back as they were."""
    channel = await net.node().dial(await net.server(echo))
    data = Random(size).randbytes(size)
    sending = asyncio.create_task(channel.send(data))
    assert await read_exactly(channel, size) == data
    await sending
    await channel.close()


async def test_ends_know_each_other(net: Net) -> None:
    """Each end names the node at the other and the transport between."""
    held = Held()
    server, client = await net.server(held), net.node()
    near = await client.dial(server)
    far = await held.channel()
    assert (near.peer, far.peer) == (server.id, client.id)
    assert near.transport == far.transport == client.transport.name
    assert server.address.startswith(f"{server.transport.name}://")


async def test_receive_is_bounded(net: Net) -> None:
    """One receive never returns more than RECEIVE_BYTES."""
    near, far, _ = await connected(net)
    sending = asyncio.create_task(near.send(bytes(3 * RECEIVE_BYTES)))
    got = 0
    while got < 3 * RECEIVE_BYTES:
        await asyncio.sleep(0.01)
        piece = await far.receive()
        assert 0 < len(piece) <= RECEIVE_BYTES
        got += len(piece)
    await sending


async def test_close_is_a_clean_end(net: Net) -> None:
    """After a close the other end reads what was sent, then the end, again and again."""
    near, far, _ = await connected(net)
    await near.send(b"last words")
    await near.close()
    assert await read_all(far) == b"last words"
    assert await far.receive() == b""


async def test_close_flushes_to_a_slow_reader(net: Net) -> None:
    """Everything that was sent before a close arrives, though the reader starts late."""
    near, far, _ = await connected(net)
    data = Random(5).randbytes(3 * MB)
    closing = asyncio.create_task(send_and_close(near, data))
    await asyncio.sleep(0.1)
    assert await read_all(far) == data
    await closing


@pytest.mark.parametrize("net", ["tls", "iroh"], indirect=True)
async def test_close_does_not_wait_for_a_trickle(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that takes a little now and then holds nobody up: after a while the channel is dropped."""
    for module in ("tls_channel", "iroh_channel"):
        monkeypatch.setattr(f"shoal.transport.{module}.CLOSE_MOST_S", 0.5)
    near, far, _ = await connected(net)
    near._channel.write(bytes(32 * MB))  # more than the kernel takes

    async def trickle() -> None:
        while await far.receive():
            await asyncio.sleep(0.05)

    reading = asyncio.ensure_future(trickle())
    async with asyncio.timeout(5.0):
        await near.close()
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)


async def send_and_close(channel: ByteStream, data: bytes) -> None:
    """Send one message and close behind it."""
    await channel.send(data)
    await channel.close()


async def test_handler_that_returns_closes(net: Net) -> None:
    """What a handler sent last arrives, and then the end."""
    data = Random(6).randbytes(MB)
    server = await net.server(lambda channel: channel.send(data))
    assert await read_all(await net.node().dial(server)) == data


async def test_handler_that_fails_ends_its_channel(net: Net) -> None:
    """An error of ours in a handler ends that channel; others are served as before."""

    async def fail(channel: ByteStream) -> None:
        if await channel.receive() == b"fail":
            raise ChannelClosed("on purpose")
        await channel.send(b"fine")

    server, client = await net.server(fail), net.node()
    channel = await client.dial(server)
    await channel.send(b"fail")
    assert await end_of(channel)
    channel = await client.dial(server)
    await channel.send(b"go on")
    assert await read_exactly(channel, 4) == b"fine"


async def end_of(channel: ByteStream) -> bool:
    """Read until the channel ends, cleanly or not."""
    async with asyncio.timeout(WAIT_S):
        try:
            while await channel.receive():
                pass
        except ChannelClosed:
            pass
    return True


async def test_abort_ends_both_sides(net: Net) -> None:
    """An abort is an error here and an end there."""
    near, far, _ = await connected(net)
    waiting = asyncio.create_task(near.receive())
    await asyncio.sleep(0)
    near.abort()
    with pytest.raises(ChannelClosed):
        await waiting
    with pytest.raises(ChannelClosed):
        await near.receive()
    with pytest.raises(ChannelClosed):
        await near.send(b"too late")
    assert await end_of(far)


async def test_sending_to_a_closed_end_fails(net: Net) -> None:
    """Who keeps sending to an end that has closed is told, sooner or later."""
    near, far, _ = await connected(net)
    await far.close()
    with pytest.raises(ChannelClosed):
        async with asyncio.timeout(WAIT_S):
            while True:
                await near.send(bytes(1000))
                await asyncio.sleep(0.001)


async def test_ending_twice_is_harmless(net: Net) -> None:
    """Close and abort in any order and number."""
    near, far, _ = await connected(net)
    await asyncio.gather(near.close(), near.close())
    await near.close()
    near.abort()
    await near.close()
    with pytest.raises(ChannelClosed):
        await near.send(b"x")
    far.abort()
    far.abort()
    await far.close()


async def test_both_close_at_once(net: Net) -> None:
    """Ends that close at the same moment do not wait for each other."""
    near, far, _ = await connected(net)
    await near.send(b"x")
    await far.send(b"y")
    async with asyncio.timeout(WAIT_S):
        await asyncio.gather(near.close(), far.close())


async def test_many_small_messages_unread(net: Net) -> None:
    """Thousands of small messages may wait for a slow reader without breaking anything."""
    near, far, _ = await connected(net)
    messages = [index.to_bytes(4, "big") * 16 for index in range(5000)]
    sent = 0

    async def send() -> None:
        nonlocal sent
        for message in messages:
            await near.send(message)
            sent += 1

    sending = asyncio.create_task(send())
    await stalled(lambda: sent)
    assert await read_exactly(far, 64 * len(messages)) == b"".join(messages)
    await sending


async def test_small_messages_one_by_one(net: Net) -> None:
    """A reader that takes each message before the next is sent sees just that message."""
    near, far, _ = await connected(net)
    for index in range(600):
        await near.send(b"%06d" % index)
        assert await read_exactly(far, 6) == b"%06d" % index


async def test_channels_are_independent(net: Net) -> None:
    """Many channels at once between two nodes, one of them stuck, keep their bytes apart."""

    async def stuck_or_echo(channel: ByteStream) -> None:
        if (first := await channel.receive()) == b"stop":
            await asyncio.sleep(WAIT_S)
        await channel.send(first)
        await echo(channel)

    server, client = await net.server(stuck_or_echo), net.node()
    stuck = await client.dial(server)
    await stuck.send(b"stop")
    blocked = asyncio.create_task(stuck.send(bytes(4 * MB)))

    async def talk(index: int) -> None:
        channel = await client.dial(server)
        data = Random(index).randbytes(20_000 + index)
        await channel.send(data)
        assert await read_exactly(channel, len(data)) == data
        await channel.close()

    await asyncio.gather(*(talk(index) for index in range(30)))
    stuck.abort()
    await asyncio.gather(blocked, return_exceptions=True)


async def test_back_pressure(net: Net) -> None:
    """A sender stalls when nobody reads, within bounded memory, and goes on when somebody does."""
    near, far, _ = await connected(net)
    piece, count, sent = bytes(64 * 1024), 1024, 0

    async def send() -> None:
        nonlocal sent
        for _ in range(count):
            await near.send(piece)
            sent += 1

    sending = asyncio.create_task(send())
    assert await stalled(lambda: sent) < count // 2  # 32 MB: far above our buffers and the kernel's
    await read_exactly(far, count * len(piece))
    await sending


async def test_cancelled_receive_loses_nothing(net: Net) -> None:
    """Bytes that come around a cancelled receive are read by the next one."""
    near, far, _ = await connected(net)
    for index in range(20):
        waiting = asyncio.create_task(far.receive())
        await asyncio.sleep(0)
        await near.send(b"%04d" % index)
        waiting.cancel()
        got = (await asyncio.gather(waiting, return_exceptions=True))[0]
        before = got if isinstance(got, bytes) else b""
        assert before + await read_exactly(far, 4 - len(before)) == b"%04d" % index


async def test_cancelled_send_stays_whole(net: Net) -> None:
    """A send that is cancelled while it waits for room has handed over its whole message."""
    near, far, _ = await connected(net)
    message, count = Random(3).randbytes(MB), 0
    while True:
        sending = asyncio.create_task(near.send(message))
        count += 1
        done, _ = await asyncio.wait([sending], timeout=0.2)
        if not done:
            sending.cancel()
            break
    await asyncio.gather(sending, return_exceptions=True)
    assert await read_exactly(far, count * MB) == message * count
    await near.send(b"more")
    assert await read_exactly(far, 4) == b"more"


async def test_first_bytes_from_both_sides(net: Net) -> None:
    """What either side sends as soon as it can is not lost in the handshake."""

    async def greet(channel: ByteStream) -> None:
        await channel.send(b"server first")
        await channel.send(await channel.receive())

    channel = await net.node().dial(await net.server(greet))
    await channel.send(b"client first")
    assert await read_all(channel) == b"server firstclient first"


async def test_wrong_identity(net: Net) -> None:
    """Another key at the address is an IdentityError, and no handler is run."""
    held = Held()
    server, client = await net.server(held), net.node()
    with pytest.raises(IdentityError, match="expected"):
        async with asyncio.timeout(WAIT_S):
            await client.transport.dial(net.node().id, server.address)
    assert not held.channels
    await client.dial(server)
    await until(lambda: held.channels)


async def test_nobody_there(net: Net) -> None:
    """A node that has gone is a DialError; over UDP nothing says so, and the caller's deadline ends it."""
    server, client = await net.server(echo), net.node()
    gone = Node(server.key, server.transport)
    address = gone.address
    await server.transport.close()
    limit_s = 0.3 if net.kind == "iroh" else WAIT_S
    with pytest.raises((DialError, TimeoutError)) as caught:
        async with asyncio.timeout(limit_s):
            await client.transport.dial(gone.id, address)
    assert (caught.type is TimeoutError) == (net.kind == "iroh")


@pytest.mark.parametrize("address", ["", "nonsense", "tls://", "iroh://1.2.3.4", "tls://h:port", "http://127.0.0.1:80"])
async def test_addresses_of_others(net: Net, address: str) -> None:
    """What is not an address of the transport is a UsageError."""
    with pytest.raises((UsageError, DialError)) as caught:
        async with asyncio.timeout(WAIT_S):
            await net.node().transport.dial(net.node().id, address)
    assert isinstance(caught.value, UsageError)


@pytest.mark.parametrize("closer", ["server", "client"])
async def test_closing_a_transport_ends_its_channels(net: Net, closer: str) -> None:
    """Accepted and dialled channels end with their transport, on both sides, and a closed transport dials no more."""
    held = Held()
    server, client = await net.server(held), net.node()
    near = await client.dial(server)
    far = await held.channel()
    closing = (server if closer == "server" else client).transport
    await closing.close()
    await closing.close()
    assert await end_of(near)
    assert await end_of(far)
    if closer == "client":
        with pytest.raises(UsageError):
            await closing.dial(server.id, server.address)


async def test_nothing_is_kept_of_ended_channels(net: Net) -> None:
    """A transport forgets channels that have ended, whoever ended them."""
    server, client = await net.server(echo), net.node()

    async def visit(index: int) -> None:
        channel = await client.dial(server)
        await channel.send(b"hello")
        await read_exactly(channel, 5)
        if index % 2:
            await channel.close()
        else:
            channel.abort()

    for _ in range(5):
        await asyncio.gather(*(visit(index) for index in range(10)))
    for transport in (server.transport, client.transport):
        await until(lambda kept=transport: not getattr(kept, "_channels", ()))


class Sink:
    """Keeps what a channel pushes; pauses it when `limit` bytes have come."""

    def __init__(self, channel: Channel, limit: int = 1 << 40) -> None:
        self.data = bytearray()
        self.ends: list[Exception | None] = []
        self.limit = limit
        self._channel = channel

    def data_received(self, data: bytes) -> None:
        """ChannelSink."""
        assert data
        assert not self.ends
        self.data += data
        if len(self.data) >= self.limit:
            self._channel.pause_reading()

    def connection_lost(self, error: Exception | None) -> None:
        """ChannelSink."""
        self.ends.append(error)


async def pushing(net: Net) -> tuple[Channel, Channel]:
    """Both ends of a new channel without sinks, the dialler's first."""
    accepted: list[Channel] = []
    release = asyncio.Event()

    async def hold(channel: Channel) -> None:
        accepted.append(channel)
        await release.wait()

    server = await net.pushing_server(hold)
    near = await net.node().transport.dial(server.id, server.address)
    await until(lambda: accepted)
    return near, accepted[0]


async def test_a_sink_gets_what_came_before_it(net: Net) -> None:
    """Bytes and the end, in order, whenever it is attached."""
    near, far = await pushing(net)
    near.write(b"first ")
    await near.drain()
    await asyncio.sleep(0.05)
    sink = Sink(far)
    far.attach(sink)
    near.write(b"then")
    await near.close()
    await until(lambda: sink.ends)
    assert (bytes(sink.data), sink.ends) == (b"first then", [None])
    other = Sink(far)
    far.detach(b"")
    far.attach(other)
    assert (bytes(other.data), other.ends) == (b"", [None])


async def test_a_sink_that_pauses_holds_the_sender_back(net: Net) -> None:
    """Within bounded memory; when it resumes, all the rest comes."""
    near, far = await pushing(net)
    sink = Sink(far, limit=1)
    far.attach(sink)
    written = 0

    async def write() -> None:
        nonlocal written
        for index in range(512):
            near.write(index.to_bytes(2, "big") * (32 * 1024))
            await near.drain()
            written += 1

    writing = asyncio.create_task(write())
    assert await stalled(lambda: written) < 256  # 16 MB: far above our buffers and the kernel's
    assert not near.writable
    sink.limit = 1 << 40
    far.resume_reading()
    await until(lambda: len(sink.data) == 512 * 64 * 1024)
    await writing
    assert near.writable
    assert sink.data[::65536] == bytes(index >> 8 for index in range(512))


async def test_a_sink_hands_over_to_another(net: Net) -> None:
    """What the first has not used is the second's, before everything that comes later."""
    near, far = await pushing(net)
    first, second = Sink(far), Sink(far)
    far.attach(first)
    near.write(b"hello world")
    await until(lambda: len(first.data) == 11)
    far.detach(bytes(first.data[6:]))
    near.write(b" again")
    await near.drain()
    await asyncio.sleep(0.02)
    far.attach(second)
    await until(lambda: len(second.data) == 11)
    assert bytes(second.data) == b"world again"


async def test_an_abort_is_told_to_the_sink_at_once(net: Net) -> None:
    """Once, with an error, though it has paused; nothing can be written any more."""
    near, far = await pushing(net)
    sink, theirs = Sink(near), Sink(far)
    near.attach(sink)
    far.attach(theirs)
    near.pause_reading()
    near.abort()
    near.abort()
    assert [type(end) for end in sink.ends] == [ChannelClosed]
    assert not near.writable
    with pytest.raises(ChannelClosed):
        near.write(b"x")
    await until(lambda: theirs.ends)
    assert len(theirs.ends) == 1
