"""What is particular to the memory network: tests may cut it."""

from __future__ import annotations

import pytest

from shoal.errors import ChannelClosed, DialError
from shoal.transport.byte_stream import ByteStream
from shoal.transport.memory_transport import MemoryNetwork, MemoryTransport
from shoal.types import PeerId
from tests.unit.transport.nodes import echo, read_exactly

A, B, C = (PeerId(letter * 64) for letter in "abc")


async def network_of(*peers: PeerId) -> tuple[MemoryNetwork, list[MemoryTransport]]:
    """Echoing nodes."""
    network = MemoryNetwork()
    transports = [MemoryTransport(peer, network) for peer in peers]
    for transport in transports:
        await transport.listen(lambda channel: echo(ByteStream(channel)))
    return network, transports


async def test_cut_between_two() -> None:
    """Channels between two nodes break, whoever dialled; others do not, and new ones can be made."""
    network, (a, b, c) = await network_of(A, B, C)
    there, back = ByteStream(await a.dial(B, f"memory://{B}")), ByteStream(await b.dial(A, f"memory://{A}"))
    other = ByteStream(await a.dial(C, f"memory://{C}"))
    assert network.cut(A, B) == 2
    for channel in (there, back):
        with pytest.raises(ChannelClosed):
            await channel.receive()
    await other.send(b"fine")
    assert await read_exactly(other, 4) == b"fine"
    assert network.cut(A, B) == 0
    assert await a.dial(B, f"memory://{B}")
    for transport in (a, b, c):
        await transport.close()


async def test_cut_one_off() -> None:
    """A node can be cut off from everybody at once."""
    network, (a, b, c) = await network_of(A, B, C)
    await a.dial(B, f"memory://{B}")
    await c.dial(A, f"memory://{A}")
    await b.dial(C, f"memory://{C}")
    assert network.cut(A) == 2
    for transport in (a, b, c):
        await transport.close()


async def test_the_same_node_may_come_back() -> None:
    """A closed node is not found; another transport under its id is."""
    network, (a, b) = await network_of(A, B)
    await b.close()
    with pytest.raises(DialError):
        await a.dial(B, f"memory://{B}")
    again = MemoryTransport(B, network)
    await again.listen(lambda channel: echo(ByteStream(channel)))
    await b.close()  # the old one's second close does not take the new one away
    assert await a.dial(B, f"memory://{B}")
    for transport in (a, again):
        await transport.close()
