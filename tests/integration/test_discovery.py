"""Swarms that are found without a ticket: over mDNS and over a DHT of twenty nodes, all on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shoal.client.client import AsyncClient
from shoal.errors import NetworkError, UsageError
from shoal.local_cluster import LocalServer
from shoal.server.serve_options import ServeOptions
from shoal.server.server import Server
from shoal.swarm.discovery.discovery_options import Discoveries, DiscoveryOptions
from shoal.swarm.discovery.libtorrent_session import LibtorrentSession
from shoal.types import Span
from tests.integration.test_processes import run
from tests.support.local_dht import local_dht, node_host
from tests.swarms import SwarmMaker, until

NODES = 20
LOOPBACK = "127.0.0.1"
FAR = node_host(200)
"""Addresses that no node of the local DHT has."""


@contextlib.asynccontextmanager
async def strangers(engine: LibtorrentSession, name: str) -> AsyncIterator[None]:
    """Peers in the DHT that claim to be members: one is silent, one says nonsense, and at one nobody is there."""
    pytest.importorskip("libtorrent")
    from shoal.swarm.discovery.dht import DhtDiscovery
    from shoal.swarm.discovery.discovery import Presence
    from shoal.types import PeerId

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            await reader.read()
        writer.transport.abort()

    async def nonsense(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail ready\r\n" * 200)
        with contextlib.suppress(OSError):
            await writer.drain()
        writer.transport.abort()

    host = engine.options.interface
    servers = [await asyncio.start_server(serve, host, 0) for serve in (silent, nonsense)]
    ports = [server.sockets[0].getsockname()[1] for server in servers]
    liar = DhtDiscovery(engine, name)
    for port in (*ports, 1):
        await liar.announce(Presence(PeerId("0" * 64), "0" * 32, (), port))
    try:
        yield
    finally:
        for server in servers:
            server.close()


async def test_a_local_network_needs_no_ticket(swarm_of: SwarmMaker) -> None:
    """Two servers and a client that share nothing but the loopback interface become one swarm over mDNS."""
    lan = DiscoveryOptions(lan=True, interface=LOOPBACK)
    async with swarm_of(Span(0, 3), Span(3, 6), peers=(), discovery=lan) as swarm:
        async with AsyncClient([], only="tls", discoveries=Discoveries(lan)) as client:
            model = await client.find_model(wait_s=20)
            async with client.session(model, max_tokens=8, wait_s=20) as session:
                assert [hop.span for hop in session.route] == [Span(0, 3), Span(3, 6)]
                assert {hop.peer for hop in session.route} == {server.identity.peer for server in swarm.servers}
        await until(lambda: all(len(server.directory.records()) == 2 for server in swarm.servers), timeout_s=30)


async def test_a_name_alone_gives_a_route(swarm_of: SwarmMaker, tiny_model: Path) -> None:
    """Through a DHT of 20 nodes in which strangers lie, servers and a client of one name find each other."""
    pytest.importorskip("libtorrent")
    async with local_dht(NODES) as engines, strangers(engines[3], "our swarm"):
        node = f"{engines[0].options.interface}:{engines[0].options.port}"

        def options(interface: str) -> DiscoveryOptions:
            return DiscoveryOptions(public=True, swarm_name="our swarm", dht_nodes=(node,), interface=interface)

        async with contextlib.AsyncExitStack() as stack:
            servers = [
                await stack.enter_async_context(
                    Server(
                        ServeOptions(
                            model=str(tiny_model),
                            blocks=span,
                            transport="tls",
                            listen=f"{node_host(200 + index)}:0",
                            memory_bytes=128 << 20,
                            discovery=options(node_host(200 + index)),
                        )
                    )
                )
                for index, span in enumerate((Span(0, 3), Span(3, 6)))
            ]
            found = Discoveries(options(node_host(210)))
            async with contextlib.AsyncExitStack() as late:
                client = AsyncClient([], only="tls", discoveries=found)
                async with asyncio.timeout(30):
                    while True:
                        try:
                            await late.enter_async_context(client)
                            break
                        except NetworkError:  # the servers' first announcements are on their way
                            found = Discoveries(options(node_host(210)))
                            client = AsyncClient([], only="tls", discoveries=found)
                model = await client.find_model(wait_s=30)
                async with client.session(model, max_tokens=8, wait_s=30) as session:
                    assert [hop.peer for hop in session.route] == [server.identity.peer for server in servers]


async def test_nobody_there_is_said(tmp_path: Path) -> None:
    """A client that finds nobody names what it tried; one without any way to look is a mistake."""
    alone = Discoveries(DiscoveryOptions(lan=True, interface=LOOPBACK), "ab" * 16)
    with pytest.raises(NetworkError, match="nobody was found"):
        await AsyncClient([], only="tls", discoveries=alone).__aenter__()
    with pytest.raises(UsageError, match="ticket"):
        AsyncClient([])


async def test_commands_find_a_local_swarm(tiny_model: Path) -> None:
    """`shoal serve --lan` is found by `shoal status --lan`, and the public mode refuses a loopback address."""
    server = LocalServer(str(tiny_model), "--lan", "--transport", "tls", "--memory", "128MB")
    try:
        ready = server.wait_ready()
        options = ("--lan", "--interface", LOOPBACK, "--transport", "tls", "--json")

        def found() -> bool:
            done = run("status", *options, model=tiny_model, code=None)
            return done.returncode == 0 and any(
                one["peer"] == ready["peer"] for model in json.loads(done.stdout)["models"] for one in model["servers"]
            )

        await until(found, timeout_s=60)
    finally:
        server.stop()
    refused = run("serve", str(tiny_model), "--public", "--yes", model=tiny_model, code=1)
    assert "0.0.0.0" in refused.stderr


def test_loopback_has_many_addresses() -> None:
    """What these tests lean on: every 127.x address is this machine's."""
    with socket.socket() as one:
        one.bind((FAR, 0))
