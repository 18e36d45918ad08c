"""Nodes that prove their key, take a question and never answer it: they hold no client up that knows others."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import msgspec

from shoal.client.client import AsyncClient
from shoal.protocol.messages import RecordBatch, RecordDigest
from shoal.swarm.directory.directory import pack_records
from shoal.swarm.directory.records import RECORD_LIFETIME_S, ServerRecord, sign_record
from shoal.swarm.discovery.ticket import Ticket
from shoal.swarm.identity import Identity
from shoal.transport.channel import Channel
from shoal.transport.frame_channel import STRANGER_PAYLOAD_BYTES, FrameChannel
from shoal.types import PeerId, Span
from tests.attacks.crowds import FromAddress, promising
from tests.swarms import SwarmMaker

ALL = Span(0, 6)
SOON_S = 4.0
"""An exchange that is never answered takes ten."""

AHEAD_S = 3600.0


class Listener:
    """Takes every channel and says nothing on it."""

    def __init__(self, host: str = "127.0.0.2") -> None:
        self.key = Identity.generate()
        self.transport = FromAddress(self.key, host)

    @property
    def ticket(self) -> str:
        """Reaches it."""
        return str(Ticket(self.key.peer, self.transport.addresses))

    async def come(self, target: ServerRecord) -> None:
        """Tell a server of itself, with a clock that is ahead."""
        now = time.time() + AHEAD_S
        record = msgspec.structs.replace(
            promising(self.key, target.model, self.transport.addresses),
            issued_at=now,
            expires_at=now + RECORD_LIFETIME_S,
        )
        async with FrameChannel(await self.transport.dial(PeerId(target.peer), target.addresses[0])) as channel:
            await channel.send(RecordDigest("", now), b"")
            await channel.expect(RecordBatch)
            signed = sign_record(record, self.key).data
            await channel.send(RecordBatch(0, now), pack_records([], [signed], STRANGER_PAYLOAD_BYTES))


@contextlib.asynccontextmanager
async def listening(host: str = "127.0.0.2") -> AsyncIterator[Listener]:
    """One more of them."""

    async def hold(channel: Channel) -> None:
        await asyncio.Event().wait()

    made = Listener(host)
    await made.transport.listen(hold)
    try:
        yield made
    finally:
        await made.transport.close()


async def joined_in_s(*tickets: str) -> float:
    """How long a client takes to know the swarm."""
    began = time.monotonic()
    async with AsyncClient(tickets, only="tls") as client:
        assert client.records()
        return time.monotonic() - began


async def test_a_doubtful_one_that_is_silent(swarm_of: SwarmMaker) -> None:
    """A node whose clock is an hour ahead is asked what it shows, and not waited for."""
    async with swarm_of(ALL) as swarm, listening() as silent:
        server = swarm.servers[0]
        await silent.come(server.record)
        assert server.directory.get(silent.key.peer) is not None
        assert await joined_in_s(swarm.ticket) < SOON_S


async def test_a_ticket_of_one_that_is_silent(swarm_of: SwarmMaker) -> None:
    """Among those that a client knows, the first that answers is enough."""
    async with swarm_of(ALL) as swarm, listening() as silent:
        assert await joined_in_s(silent.ticket, swarm.ticket) < SOON_S
