"""A DHT of this machine's own: libtorrent nodes on 127.0.0.1, 127.0.0.2, … that know nobody else."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator

from shoal.swarm.discovery.libtorrent_session import LibtorrentOptions, LibtorrentSession


def node_host(index: int) -> str:
    """A loopback address of its own for each node: the DHT counts nodes of one address as one."""
    return f"127.0.{1 + index // 250}.{1 + index % 250}"


def free_port() -> int:
    """A port that nothing uses on the first node's address, for TCP and UDP."""
    while True:
        with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
            tcp.bind((node_host(0), 0))
            port = int(tcp.getsockname()[1])
            with contextlib.suppress(OSError):
                udp.bind((node_host(0), port))
                return port


@contextlib.asynccontextmanager
async def local_dht(count: int) -> AsyncIterator[list[LibtorrentSession]]:
    """`count` nodes, all told of the first one only; and the first one of the second, since nobody else tells it."""
    port = free_port()
    hosts = [node_host(index) for index in range(count)]
    known = [f"{hosts[0]}:{port}" if index else f"{hosts[1]}:{port}" for index in range(count)]
    engines = [
        LibtorrentSession(LibtorrentOptions(interface=host, port=port, nodes=(node,)))
        for host, node in zip(hosts, known, strict=True)
    ]
    try:
        for engine in engines:
            engine.open()
        yield engines
    finally:
        for engine in engines:
            await engine.close()
