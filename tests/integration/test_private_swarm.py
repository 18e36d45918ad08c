"""A private swarm from its first invite to a revocation, over real TLS."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shoal.client.client import AsyncClient
from shoal.engine.proof import numbers
from shoal.errors import NetworkError
from shoal.types import Span
from tests.private import PrivateServers, private_swarm

ROWS = numbers(1, 5, 48)


@pytest.fixture
async def swarm(tiny_model: Path, tmp_path: Path) -> AsyncIterator[PrivateServers]:
    """Two servers, each with one half of the blocks."""
    async with private_swarm(tiny_model, tmp_path, Span(0, 3), Span(3, 6)) as swarm:
        yield swarm


async def answer(client: AsyncClient) -> list[list[float]]:
    """What all blocks make of some rows."""
    spec = await client.find_model()
    async with client.session(spec, max_tokens=8) as session:
        return (await session.step(ROWS)).tolist()


async def test_an_invite_opens_the_swarm_and_is_needed_once(swarm: PrivateServers) -> None:
    """A client with an invite is served; the second time it needs none; one without is refused."""
    async with swarm.client("guest") as client:
        first = await answer(client)
        peer = client.identity.peer
    async with swarm.client("guest", invite="") as client:
        assert client.identity.peer == peer
        assert await answer(client) == first
    with pytest.raises(NetworkError, match="only members"):
        async with AsyncClient([swarm.servers[0].ticket], only="tls"):
            pass
