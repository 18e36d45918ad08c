"""Whoever speaks QUIC to a node without Shoal's own transport."""

from __future__ import annotations

import os
from typing import Any

from shoal.transport.address import host_port, join_host_port
from shoal.transport.iroh_native import load_iroh
from shoal.transport.iroh_transport import ALPN
from tests.unit.transport.nodes import Node


async def endpoint_of(*alpns: bytes) -> Any:
    """An iroh endpoint on loopback, without relays; it takes connections of these protocols."""
    iroh = load_iroh()
    builder = iroh.EndpointBuilder()
    builder.apply_minimal()
    builder.relay_mode(iroh.RelayMode.disabled())
    builder.secret_key(os.urandom(32))
    builder.bind_addr("127.0.0.1:0")
    builder.bind_addr("[::1]:0")
    if alpns:
        builder.alpns(list(alpns))
    return await builder.bind()


class Stranger:
    """An iroh endpoint of its own, with a connection to a node."""

    def __init__(self, endpoint: Any, connection: Any) -> None:
        self.endpoint = endpoint
        self.connection = connection

    @classmethod
    async def at(cls, node: Node, alpn: bytes = ALPN) -> Stranger:
        """Connect without Shoal's own transport."""
        iroh, endpoint = load_iroh(), await endpoint_of()
        there = iroh.EndpointId.from_bytes(bytes.fromhex(node.id))
        target = join_host_port(*host_port(node.address, "iroh"))
        try:
            return cls(endpoint, await endpoint.connect(iroh.EndpointAddr(there, None, [target]), alpn))
        except BaseException:
            await endpoint.close()
            raise

    async def stream(self, *pieces: bytes) -> Any:
        """A new stream with these bytes in it."""
        stream = await self.connection.open_bi()
        for piece in pieces:
            await stream.send().write_all(piece)
        return stream

    async def close(self) -> None:
        """Be gone."""
        self.connection = None
        await self.endpoint.close()
