"""Prompts that were sent before, through whole servers."""

from __future__ import annotations

import torch

from shoal.client.client import AsyncClient
from shoal.client.client_options import SessionOptions
from shoal.engine.proof import numbers
from shoal.types import Span
from tests.swarms import NUM_BLOCKS, Swarm, SwarmMaker

HALVES = (Span(0, 3), Span(3, NUM_BLOCKS))
ROWS = numbers(3, 150, 48)


async def send(client: AsyncClient) -> torch.Tensor:
    """The same rows in a new session."""
    spec = await client.find_model()
    async with client.session(spec, options=SessionOptions(max_tokens=200)) as session:
        return await session.step(ROWS)


def found(swarm: Swarm) -> list[int]:
    """Rows that each server has found."""
    return [server.status().prefix_rows for server in swarm.servers]


async def test_a_client_finds_its_own_prompt_again(swarm_of: SwarmMaker) -> None:
    """Whole pages, at both hops, bit for bit, with 4-bit keys and values too; another client computes them anew."""
    for dtype in ("float32", "int4"):
        async with swarm_of(*HALVES, kv_dtype=dtype) as swarm:
            async with swarm.client() as client:
                first = await send(client)
                assert found(swarm) == [0, 0]
                assert torch.equal(await send(client), first)
                assert found(swarm) == [128, 128]
            async with swarm.client() as stranger:
                assert torch.equal(await send(stranger), first)
            assert found(swarm) == [128, 128]


async def test_a_server_may_share_between_clients(swarm_of: SwarmMaker) -> None:
    """If its owner says so."""
    async with swarm_of(*HALVES, share_prefixes=True) as swarm:
        async with swarm.client() as client:
            first = await send(client)
        async with swarm.client() as stranger:
            assert torch.equal(await send(stranger), first)
        assert found(swarm) == [128, 128]
