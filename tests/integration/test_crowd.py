"""Eight sessions of one client: the head and the server's steps are shared, the tokens are as if each were alone."""

from __future__ import annotations

import asyncio
import threading

import torch

from bench.concurrent import Timed
from shoal.client.remote_model import RemoteModel, open_model
from shoal.types import Span
from tests.swarms import SwarmMaker

COUNT = 12
PROMPTS = [list(b"The sea is large"[: 3 + index]) for index in range(8)]


async def replies(model: RemoteModel, together: bool) -> list[list[int]]:
    """The tokens after each prompt."""
    timed = [Timed(model, prompt, COUNT) for prompt in PROMPTS]
    if together:
        await asyncio.gather(*(reply.run() for reply in timed))
    else:
        for reply in timed:
            await reply.run()
    return [reply.result.token_ids for reply in timed]


async def test_eight_replies_at_once_are_as_alone(swarm_of: SwarmMaker) -> None:
    """The head's thread is held up until all first rows are there, so that at least these go together."""
    async with swarm_of(Span(0, 3), Span(3, 6)) as swarm, swarm.client() as client:
        async with await open_model(client, None) as model:
            alone = await replies(model, together=False)
            model.head.batch_rows.clear()
            gate, asked = threading.Event(), 0
            choose = model.head.choose

            async def counted(row: torch.Tensor, *more: object) -> int:
                nonlocal asked
                asked += 1
                if asked == len(PROMPTS):
                    gate.set()
                return await choose(row, *more)  # type: ignore[arg-type]  # as they came

            model.head.choose = counted  # type: ignore[assignment,method-assign]  # to open the gate
            model._thread.submit(gate.wait, 20)
            assert await replies(model, together=True) == alone
            assert max(model.head.batch_rows) > 1
            assert sum(rows * batches for rows, batches in model.head.batch_rows.items()) == COUNT * len(PROMPTS)
