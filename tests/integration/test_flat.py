"""What is left of replies: nothing, and what takes room is gone without the garbage collector, which seldom comes round."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from shoal.client.remote_model import RemoteModel, open_model
from shoal.types import Span
from tests.integration.test_swarm import idle, reply
from tests.swarms import SwarmMaker, until

REPLIES = 6
LARGE = ("RowChunk", "Rows", "SSLObject", "_SSLSocket", "MemoryBIO")
"""What holds rows, or OpenSSL's memory."""


def live(*names: str) -> Counter[str]:
    """How many objects there are of these types; of all that are ours if none are named."""
    kinds = [type(one) for one in gc.get_objects()]
    ours = [kind for kind in kinds if (kind.__name__ in names if names else str(kind.__module__).startswith("shoal."))]
    return Counter(kind.__name__ for kind in ours)


@pytest.fixture
def uncollected() -> Iterator[None]:
    """No garbage is collected meanwhile."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


async def several(model: RemoteModel, count: int) -> None:
    """Replies of mixed lengths, two at a time, each in a session of its own."""
    for number in range(count):
        prompts = ["the sea, " * (1 + (number + other) % 5) for other in range(2)]
        await asyncio.gather(*(reply(model, prompt, max_tokens=3 + number % 4) for prompt in prompts))


async def test_rows_and_connections_go_with_their_reply(
    swarm_of: SwarmMaker, tiny_model: Path, uncollected: None
) -> None:
    """At the client and at two servers: after more replies there are no more rows and no more of OpenSSL's objects."""
    async with swarm_of(Span(0, 3), Span(3, 6)) as swarm, swarm.client() as client:
        async with await open_model(client, str(tiny_model)) as model:
            await several(model, 2)
            await until(lambda: all(map(idle, swarm.servers)))
            before = live(*LARGE)
            await several(model, REPLIES)
            await until(lambda: not live(*LARGE) - before)


async def test_nothing_is_left_of_replies(swarm_of: SwarmMaker, tiny_model: Path) -> None:
    """After a collection no type of ours has one object more for each reply: no list and no table grows with them."""

    def collected() -> Counter[str]:
        gc.collect()
        return live()

    async with swarm_of(Span(0, 3), Span(3, 6)) as swarm, swarm.client() as client:
        async with await open_model(client, str(tiny_model)) as model:
            await several(model, REPLIES)
            await until(lambda: all(map(idle, swarm.servers)))
            before = collected()
            await several(model, REPLIES)
            await until(lambda: max((collected() - before).values(), default=0) < REPLIES)
