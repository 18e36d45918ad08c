"""Servers and clients whose clocks are off are in the swarm all the same, or it is said why they are not."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from shoal.client.client import AsyncClient
from shoal.client.remote_model import open_model
from shoal.errors import NoRoute
from shoal.server.serve_options import ServeOptions
from shoal.server.server import Server
from shoal.types import Span
from tests.integration.test_swarm import reply
from tests.swarms import SwarmMaker, until

FIRST, SECOND, ALL = Span(0, 3), Span(3, 6), Span(0, 6)


class OffClock:
    """The machine's clock, but for what it shows."""

    def __init__(self, off_s: float) -> None:
        self._off_s = off_s

    def monotonic(self) -> float:
        """Clock."""
        return time.monotonic()

    def wall(self) -> float:
        """Clock."""
        return time.time() + self._off_s

    async def sleep(self, seconds: float) -> None:
        """Clock."""
        await asyncio.sleep(seconds)


def server(model: Path, span: Span, off_s: float, *peers: str) -> Server:
    """A server whose clock is off."""
    config = ServeOptions(model=str(model), blocks=span, peers=peers, transport="tls", memory_bytes=128 << 20)
    return Server(config, clock=OffClock(off_s))


async def tokens(client: AsyncClient, model: Path) -> list[int]:
    """What is replied."""
    async with client, await open_model(client, str(model)) as remote:
        return (await reply(remote, "the sea", max_tokens=8)).token_ids


@pytest.mark.parametrize("off_s", [200.0, 700.0, -700.0])
@pytest.mark.parametrize("spans", [(FIRST, SECOND), (SECOND, FIRST)], ids=["at the end", "in front"])
async def test_a_server_whose_clock_is_off(
    swarm_of: SwarmMaker, tiny_model: Path, off_s: float, spans: tuple[Span, Span]
) -> None:
    """It is found by the ticket of another one, and hops link to it and from it."""
    async with swarm_of(ALL) as swarm:
        expected = await tokens(swarm.client(), tiny_model)
    async with swarm_of(spans[0]) as swarm, server(tiny_model, spans[1], off_s, swarm.ticket) as other:
        await until(lambda: swarm.servers[0].directory.get(other.identity.peer) is not None)
        for ticket in (swarm.ticket, other.ticket):
            async with asyncio.timeout(20):
                assert await tokens(AsyncClient([ticket], only="tls"), tiny_model) == expected


@pytest.mark.parametrize("off_s", [700.0, -700.0])
async def test_a_client_whose_clock_is_off(swarm_of: SwarmMaker, tiny_model: Path, off_s: float) -> None:
    """It takes records to be as old as the member says that it asked."""
    async with swarm_of(FIRST, SECOND) as swarm:
        expected = await tokens(swarm.client(), tiny_model)
        client = swarm.client(clock=OffClock(off_s))
        assert await tokens(client, tiny_model) == expected


async def test_a_clock_that_was_never_set(tiny_model: Path) -> None:
    """The reason is told to who dialled the server."""
    async with server(tiny_model, ALL, -1e6) as alone, AsyncClient([alone.ticket], only="tls") as client:
        assert await client.status() == []
        assert any("clock" in problem for problem in client.problems)
        with pytest.raises(NoRoute, match="is a clock wrong"):
            await client.find_model(wait_s=0.0)
