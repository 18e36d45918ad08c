"""The asynchronous face: tasks that share a model, cancellation, options of the session."""

from __future__ import annotations

import asyncio
import threading

import pytest

import shoal
from shoal.types import Span
from tests.integration.test_sync import ALL, GREEDY, PROMPT, idle
from tests.swarms import SwarmMaker, until

LONG = {"max_tokens": 400, "ignore_eos": True}


async def test_tasks_share_a_model(swarm_of: SwarmMaker) -> None:
    """Each gets what it gets alone."""
    prompts = [f"number {index} says" for index in range(4)]
    async with swarm_of(ALL) as swarm:
        async with await shoal.connect_async(peers=[swarm.ticket], transport="tls") as model:
            alone = [(await model.generate(prompt, **GREEDY)).token_ids for prompt in prompts]
            together = await asyncio.gather(*(model.generate(prompt, **GREEDY) for prompt in prompts))
    assert [reply.token_ids for reply in together] == alone


async def test_a_cancelled_reply_ends_at_every_hop(swarm_of: SwarmMaker) -> None:
    """While it decodes; the model can be used after that."""
    async with swarm_of(Span(0, 3), Span(3, 6)) as swarm:
        async with await shoal.connect_async(peers=[swarm.ticket], transport="tls") as model:
            replying = asyncio.create_task(model.generate(PROMPT, **LONG))
            await until(lambda: all(server.status().rows_computed for server in swarm.servers))
            replying.cancel()
            with pytest.raises(asyncio.CancelledError):
                await replying
            await idle(swarm)
            assert (await model.generate(PROMPT, **GREEDY)).usage.completion_tokens == 24


async def test_a_reply_that_is_cancelled_while_it_opens(swarm_of: SwarmMaker) -> None:
    """A server that is held up meanwhile keeps no session for it."""
    async with swarm_of(ALL) as swarm:
        worker, gate = swarm.servers[0].worker, threading.Event()
        async with await shoal.connect_async(peers=[swarm.ticket], transport="tls") as model:
            held = asyncio.ensure_future(worker.between_steps(lambda: gate.wait(10.0)))
            replying = asyncio.create_task(model.generate(PROMPT, **LONG))
            await until(lambda: swarm.servers[0].sessions.shares.num_accounts == 1)  # it is counted, and not there yet
            replying.cancel()
            with pytest.raises(asyncio.CancelledError):
                await replying
            gate.set()
            await held
            await until(lambda: swarm.servers[0].sessions.shares.num_accounts == 0, timeout_s=2.0)
            assert len(swarm.servers[0].sessions) == 0


async def test_closing_a_model_ends_what_is_open(swarm_of: SwarmMaker) -> None:
    """Streams that are read, or were left; conversations. For a reader the reply is over."""
    async with swarm_of(ALL) as swarm:
        model = await shoal.connect_async(peers=[swarm.ticket], transport="tls")
        left, read = model.stream(PROMPT, **LONG), model.stream(PROMPT, **LONG)
        await anext(left)
        await model.chat()

        async def reads() -> int:
            return len([piece async for piece in read])

        reader = asyncio.create_task(reads())
        await until(lambda: read.usage.completion_tokens > 2)
        await model.aclose()
        await model.aclose()
        assert 0 < await reader < 400
        assert await left.next_piece() is None
        with pytest.raises(shoal.UsageError, match="the model is closed"):
            await model.generate(PROMPT)
        await idle(swarm)


async def test_what_is_asked_of_the_session_reaches_it(swarm_of: SwarmMaker) -> None:
    """Its length follows from the prompt; the rest is the caller's."""
    asked = shoal.SessionOptions(max_tokens=9, row_codec="fp32", prefill_chunk_rows=7, exact=True)
    async with swarm_of(ALL) as swarm:
        async with await shoal.connect_async(peers=[swarm.ticket], transport="tls") as model:
            async with model.stream(PROMPT, options=asked, **GREEDY) as stream:
                await anext(stream)
                assert stream.reply.session is not None
                options = stream.reply.session.options
    assert (options.prefill_chunk_rows, options.exact) == (7, True)
    assert options.max_tokens == len(stream.prompt_ids) + 24


async def test_options_are_checked_before_anything_is_asked() -> None:
    """Nobody is there to be asked."""
    with pytest.raises(shoal.UsageError, match="no option 'ticket'"):
        await shoal.connect_async(ticket="x")
    with pytest.raises(shoal.UsageError, match="head cannot be 'float8'"):
        await shoal.connect_async(peers=["nobody"], head="float8")
    with pytest.raises(shoal.UsageError, match="a ticket starts with"):
        await shoal.connect_async(peers="x")
