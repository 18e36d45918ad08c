"""Nodes on any transport, for tests: made with fresh keys, closed at the end, and searched for what they left behind."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from random import Random
from types import TracebackType

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from shoal.clock import SYSTEM_CLOCK
from shoal.transport.byte_stream import ByteStream
from shoal.transport.channel import Channel, Transport
from shoal.transport.iroh_transport import IrohTransport
from shoal.transport.memory_transport import MemoryNetwork, MemoryTransport
from shoal.transport.tls_transport import TlsTransport
from shoal.types import PeerId, peer_id
from tests.support.emulated_links import LinkedTransport
from tests.support.link_plan import LinkPlan

KINDS = ("tls", "iroh", "memory", "linked")
WAIT_S = 20.0
"""A bound for what must happen; nothing is measured with it."""


class Node:
    """A key, its id and a transport."""

    def __init__(self, key: Ed25519PrivateKey, transport: Transport) -> None:
        self.key = key
        self.id = node_id(key)
        self.transport = transport

    @property
    def address(self) -> str:
        """Where it listens."""
        return self.transport.addresses[0]

    async def dial(self, other: Node) -> ByteStream:
        """A channel to another node, for a task that waits for bytes."""
        async with asyncio.timeout(WAIT_S):
            return ByteStream(await self.transport.dial(other.id, other.address))


class Net:
    """Makes nodes of one kind; afterwards no task may be left."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._nodes: list[Node] = []
        self._memory = MemoryNetwork()
        self._plan = LinkPlan()
        self._before: set[asyncio.Task[object] | None] = set()

    def node(self) -> Node:
        """A node that only dials, so far."""
        key = Ed25519PrivateKey.generate()
        makers: dict[str, Callable[[], Transport]] = {
            "tls": lambda: TlsTransport(key),
            "iroh": lambda: IrohTransport(key),
            "memory": lambda: MemoryTransport(node_id(key), self._memory),
            "linked": lambda: LinkedTransport(
                MemoryTransport(node_id(key), self._memory), node_id(key), self._plan, SYSTEM_CLOCK, Random(1)
            ),
        }
        node = Node(key, makers[self.kind]())
        self._nodes.append(node)
        return node

    async def server(self, handler: Callable[[ByteStream], Awaitable[None]]) -> Node:
        """A node that listens; its handler waits for bytes."""
        return await self.pushing_server(lambda channel: handler(ByteStream(channel)))

    async def pushing_server(self, handler: Callable[[Channel], Awaitable[None]]) -> Node:
        """A node that listens; its handler attaches a sink, or does not."""
        node = self.node()
        await node.transport.listen(handler)
        return node

    async def __aenter__(self) -> Net:
        self._before = asyncio.all_tasks()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for node in self._nodes:
            await node.transport.close()
        if error is None:
            await until(lambda: not asyncio.all_tasks() - self._before - {asyncio.current_task()})


def node_id(key: Ed25519PrivateKey) -> PeerId:
    """The id that belongs to a key."""
    return peer_id(key.public_key().public_bytes_raw())


async def until(condition: Callable[[], object]) -> None:
    """Wait for what must come about."""
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.005)


async def stalled(progress: Callable[[], int]) -> int:
    """Wait until a number has stopped growing; returns it."""
    last, still = progress(), 0
    while still < 20:
        await asyncio.sleep(0.01)
        still = still + 1 if progress() == last else 0
        last = progress()
    return last


async def echo(channel: ByteStream) -> None:
    """A handler that sends back what it receives."""
    while data := await channel.receive():
        await channel.send(data)


async def read_exactly(channel: ByteStream, size_bytes: int) -> bytes:
    """So many bytes, which must come."""
    data = bytearray()
    async with asyncio.timeout(WAIT_S):
        while len(data) < size_bytes:
            piece = await channel.receive()
            assert piece, f"the channel ended after {len(data)} of {size_bytes} bytes"
            data += piece
    assert len(data) == size_bytes
    return bytes(data)


async def read_all(channel: ByteStream) -> bytes:
    """Everything up to a clean end."""
    data = bytearray()
    async with asyncio.timeout(WAIT_S):
        while piece := await channel.receive():
            data += piece
    return bytes(data)
