"""Refusals that pass are waited out: servers that are full, leaving or gone for a moment."""

from __future__ import annotations

import asyncio
import contextlib

import msgspec
import pytest
import torch

from shoal.client.client_options import SessionOptions
from shoal.engine.proof import numbers
from shoal.errors import ServerFull
from shoal.server.server import Server
from shoal.types import Span
from tests.swarms import SwarmMaker

ALL, FIRST, SECOND = Span(0, 6), Span(0, 3), Span(3, 6)
ROWS = numbers(11, 12, 48)
OPTIONS = SessionOptions(max_tokens=16)


async def test_a_full_server_is_waited_for(swarm_of: SwarmMaker) -> None:
    """More sessions than there is room for, at the same time: each has its turn."""
    async with swarm_of(ALL, max_sessions=2) as swarm, swarm.client() as client:
        spec = await client.find_model()

        async def one() -> torch.Tensor:
            async with client.session(spec, options=OPTIONS) as session:
                return await session.step(ROWS)

        expected, *others = await asyncio.gather(*(one() for _ in range(5)))
        assert all(torch.equal(expected, other) for other in others)


async def test_who_gives_little_time_is_answered_within_it(swarm_of: SwarmMaker) -> None:
    """With what the server said."""
    async with swarm_of(ALL, max_sessions=1) as swarm, swarm.client() as client:
        spec = await client.find_model()
        async with client.session(spec, options=OPTIONS):
            began_at = asyncio.get_running_loop().time()
            with pytest.raises(ServerFull):
                async with client.session(spec, options=OPTIONS, wait_s=0.5):
                    pass
            assert asyncio.get_running_loop().time() - began_at < 2.0


async def test_servers_are_replaced_one_after_another(swarm_of: SwarmMaker) -> None:
    """Each leaves before it is there again; who opens a session meanwhile waits, and who has one goes on."""
    async with contextlib.AsyncExitStack() as stack:
        swarm = await stack.enter_async_context(swarm_of(FIRST, SECOND))
        client = await stack.enter_async_context(swarm.client())
        spec = await client.find_model()
        async with client.session(spec, options=OPTIONS) as session:
            expected = await session.step(ROWS)

        async def one() -> torch.Tensor:
            async with client.session(spec, options=OPTIONS) as session:
                parts = [await session.step(ROWS[:6])]
                await asyncio.sleep(0.1)
                return torch.cat([*parts, await session.step(ROWS[6:])])

        async def keep_asking() -> None:
            while not done.is_set():
                assert torch.equal(await one(), expected)

        done = asyncio.Event()
        asking = [asyncio.ensure_future(keep_asking()) for _ in range(3)]
        servers = list(swarm.servers)
        for index, old in enumerate(swarm.servers):
            await old.drain(5.0)
            await old.__aexit__(None, None, None)
            await asyncio.sleep(0.3)  # nobody holds its blocks
            options = msgspec.structs.replace(old.config, peers=(servers[1 - index].ticket,))
            servers[index] = await stack.enter_async_context(Server(options))
        done.set()
        await asyncio.gather(*asking)
