"""An iroh stream as a channel: its credit, and what ends it. What every channel promises is in test_channel.py."""

from __future__ import annotations

import asyncio

import pytest

from shoal.errors import ChannelClosed
from shoal.transport.byte_stream import ByteStream
from shoal.transport.channel import Channel
from shoal.transport.iroh_channel import IrohChannel
from shoal.transport.iroh_credit import WINDOW_BYTES, WINDOW_RECORDS
from tests.unit.transport.nodes import Net, echo, node_id, read_exactly, until


async def test_credit_beyond_the_window() -> None:
    """Reading and sending far more than one window in both directions at once never stalls."""
    async with Net("iroh") as net:
        channel = await net.node().dial(await net.server(echo))
        sending = asyncio.create_task(channel.send(bytes(10 * WINDOW_BYTES)))
        assert await read_exactly(channel, 10 * WINDOW_BYTES) == bytes(10 * WINDOW_BYTES)
        await sending


@pytest.mark.parametrize(("record_bytes", "size_bytes"), [(65_536, 4 * WINDOW_BYTES), (1, 4 * WINDOW_RECORDS)])
async def test_flood_without_credit_ends_the_channel(record_bytes: int, size_bytes: int) -> None:
    """A peer that ignores the credit it has loses its channel, and this side keeps no more than the window.

    Records count as well as bytes: one of a byte costs forty times as much memory.
    """
    held: list[Channel] = []
    release = asyncio.Event()

    async def hold(channel: Channel) -> None:
        held.append(channel)
        await release.wait()

    async with Net("iroh") as net:
        server, client = await net.pushing_server(hold), net.node()
        channel = (await client.dial(server)).channel
        assert isinstance(channel, IrohChannel)
        channel._window.allowed = lambda pending: min(pending, record_bytes)  # type: ignore[method-assign]  # a cheat
        channel.write(bytes(size_bytes))
        await until(lambda: held)
        far = held[0]
        assert isinstance(far, IrohChannel)
        await until(lambda: far._closed)
        assert len(far._inbox) <= WINDOW_BYTES
        stream = ByteStream(far)
        with pytest.raises(ChannelClosed, match="broke the rules"):
            while await stream.receive():
                pass
        assert node_id(client.key) == far.peer
        honest = await net.node().dial(server)
        await honest.close()
        release.set()


async def test_an_end_releases_irohs_objects() -> None:
    """Whoever keeps the channel keeps no connection: freeing one in the wrong moment hangs the process."""
    async with Net("iroh") as net:
        channel = (await net.node().dial(await net.server(echo))).channel
        assert isinstance(channel, IrohChannel)
        channel.abort()
        await channel.wait_ended()
        assert channel._connection is channel._sender is channel._receiver is None
        assert not channel.writable
        with pytest.raises(ChannelClosed, match="closed"):
            channel.write(b"late")
        with pytest.raises(ChannelClosed):
            await channel.drain()


async def test_one_record_takes_all_that_waits() -> None:
    """Small messages that are written in one turn do not cost a call into iroh each."""
    async with Net("iroh") as net:
        stream = await net.node().dial(await net.server(echo))
        channel = stream.channel
        assert isinstance(channel, IrohChannel)
        records: list[int] = []
        next_record = channel._next_record

        def counted() -> bytes | None:
            record = next_record()
            records.append(0 if record is None else len(record))
            return record

        channel._next_record = counted  # type: ignore[method-assign]
        for _ in range(100):
            channel.write(b"x" * 10)
        assert await read_exactly(stream, 1000) == b"x" * 1000
        assert sum(size > 500 for size in records) == 1
