"""From a swarm's name alone to a route that works: a DHT of 20 nodes on this machine, hellos, exchange, dials.

Ten members share the DHT with ten strangers that take connections and say nothing. Every lookup is made by a node that
has just started and knows one DHT node and the name.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from bench.report import report
from shoal.clock import SYSTEM_CLOCK
from shoal.errors import ShoalError
from shoal.protocol.messages import RecordDigest
from shoal.swarm.directory import exchange
from shoal.swarm.directory.directory import Directory
from shoal.swarm.directory.records import RECORD_LIFETIME_S, ServerRecord, SignedRecord, sign_record
from shoal.swarm.discovery.dht import DhtDiscovery
from shoal.swarm.discovery.discovery import Presence
from shoal.swarm.discovery.discovery_options import Discoveries, DiscoveryOptions
from shoal.swarm.discovery.hello import MAX_PER_SOURCE, HelloServer
from shoal.swarm.discovery.libtorrent_session import LibtorrentSession
from shoal.swarm.identity import Identity
from shoal.swarm.routing.route_planner import plan_route
from shoal.transport.channel import Channel
from shoal.transport.dialler import Dialler
from shoal.transport.frame_channel import FrameChannel
from shoal.transport.tls_transport import TlsTransport
from shoal.types import ModelSpec, PeerId, Span
from tests.support.local_dht import local_dht, node_host

NODES = 20
MEMBERS = 10
LOOKUPS = MAX_PER_SOURCE
"""All from one address, and so many a hello answers."""

AIM_S = 5.0
SETTLE_S = 1.0
"""Between the two announcements of nodes that were all born at once (a server's own second one comes after 5 s)."""

NAME = "bench"
MODEL = ModelSpec("bench", "be" * 16, MEMBERS, 64)


class _Member:
    """What of a server takes part in discovery: a block each, records, hello and TLS, on an address of its own."""

    def __init__(self, index: int, engine: LibtorrentSession) -> None:
        self.host = engine.options.interface
        self.identity = Identity.generate()
        self.directory = Directory(SYSTEM_CLOCK)
        self.transport = TlsTransport(self.identity.key, f"{self.host}:0")
        self.discovery = DhtDiscovery(engine, NAME)
        self.hello = HelloServer(self.host, 0, lambda: self.directory.get(self.identity.peer))
        self._span = Span(index, index + 1)

    async def serve(self, channel: Channel) -> None:
        """Record exchange, nothing else."""
        framed = FrameChannel(channel)
        _, digest = await framed.expect(RecordDigest)
        await exchange.answer(framed, self.directory, digest)

    def record(self) -> SignedRecord:
        """As a server signs it."""
        now = time.time()
        peer, addresses = self.identity.peer, self.transport.addresses
        record = ServerRecord(peer, 1, now, now + RECORD_LIFETIME_S, addresses, MODEL, self._span)
        return sign_record(record, self.identity)

    async def announce(self) -> None:
        """Under the swarm's name."""
        await self.discovery.announce(Presence(self.identity.peer, MODEL.fingerprint, (), self.hello.port))


def run() -> dict[str, Any]:
    """Seconds from a name to a dialled route, medians of LOOKUPS."""
    return asyncio.run(_run())


async def _run() -> dict[str, Any]:
    async with local_dht(NODES) as engines, _members(engines[:MEMBERS]) as members, _strangers(engines[MEMBERS:]):
        for _ in range(2):
            await asyncio.gather(*(member.announce() for member in members))
            await asyncio.sleep(SETTLE_S)
        first = engines[0].options
        options = DiscoveryOptions(
            public=True, swarm_name=NAME, dht_nodes=(f"{first.interface}:{first.port}",), interface=node_host(NODES)
        )
        results = [await _lookup(options) for _ in range(LOOKUPS)]
        found = [contact async for contact in members[0].discovery.find()]
    times = [seconds for seconds in results if seconds is not None]
    known = {f"hello://{member.host}:{member.hello.port}" for member in members}
    return report(
        "discovery",
        "s",
        statistics.median(times),
        "aim",
        AIM_S,
        max_s=max(times),
        lookups=LOOKUPS,
        routes=len(times),
        announced=MEMBERS,
        found=len(known & {contact.addresses[0] for contact in found}),
        strangers=NODES - MEMBERS,
        dht_nodes=NODES,
    )


async def _lookup(options: DiscoveryOptions) -> float | None:
    """Seconds until every hop of a route has been dialled; None when that failed."""
    began = time.perf_counter()
    transport = TlsTransport(Identity.generate().key)
    dialler, directory = Dialler([transport]), Directory(SYSTEM_CLOCK)
    discoveries = Discoveries(options, MODEL.fingerprint)
    try:
        await discoveries.finder(directory, dialler).find()
        records = {held.record.peer: held.record for held in directory.records()}
        for hop in plan_route(Span(0, MODEL.num_blocks), records.values()):
            channel = await dialler.dial(PeerId(hop.peer), records[hop.peer].addresses)
            await channel.close()
        return time.perf_counter() - began
    except ShoalError:
        return None
    finally:
        await discoveries.close()
        await transport.close()


@contextlib.asynccontextmanager
async def _members(engines: Sequence[LibtorrentSession]) -> AsyncIterator[list[_Member]]:
    """Members that know each other's records, as after a few rounds of exchange."""
    members = [_Member(index, engine) for index, engine in enumerate(engines)]
    async with contextlib.AsyncExitStack() as stack:
        for member in members:
            await member.transport.listen(member.serve)
            stack.push_async_callback(member.transport.close)
            await stack.enter_async_context(member.hello)
        for member in members:
            for other in members:
                member.directory.add(other.record().data)
        yield members


@contextlib.asynccontextmanager
async def _strangers(engines: Sequence[LibtorrentSession]) -> AsyncIterator[None]:
    """Ports that nobody answers, announced under the same name."""
    with contextlib.ExitStack() as stack:
        for engine in engines:
            silent = stack.enter_context(socket.create_server((engine.options.interface, 0), backlog=LOOKUPS * 2))
            presence = Presence(PeerId("0" * 64), MODEL.fingerprint, (), silent.getsockname()[1])
            await DhtDiscovery(engine, NAME).announce(presence)
        yield
