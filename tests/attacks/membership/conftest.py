"""A private swarm, a member at work in it, and a stranger."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shoal.client.remote_model import open_model
from shoal.types import Span
from tests.attacks.membership.attackers import Honest, Outsider
from tests.private import PrivateServers, private_swarm


@pytest.fixture
async def swarm(tiny_model: Path, tmp_path: Path) -> AsyncIterator[PrivateServers]:
    """Two servers, each with one half of the blocks."""
    async with private_swarm(tiny_model, tmp_path, Span(0, 3), Span(3, 6)) as swarm:
        yield swarm


@pytest.fixture
async def honest(swarm: PrivateServers, tiny_model: Path) -> AsyncIterator[Honest]:
    """A member at work."""
    async with swarm.client("honest") as client, await open_model(client, str(tiny_model)) as model:
        yield Honest(swarm, model)


@pytest.fixture
async def outsider(swarm: PrivateServers) -> AsyncIterator[Outsider]:
    """A stranger."""
    outsider = Outsider(swarm)
    yield outsider
    await outsider.transport.close()
