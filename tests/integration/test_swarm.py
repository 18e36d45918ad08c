"""The main path: text through servers equals text from one process, whatever the route, the chunks and the company."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
import torch

from shoal.client.client import AsyncClient
from shoal.client.client_options import SessionOptions
from shoal.client.completion import GrowingReply
from shoal.client.decoder import SessionDecoder
from shoal.client.remote_model import RemoteModel, open_model
from shoal.engine.proof import numbers
from shoal.errors import GrantExceeded, NoRoute, ServerFull, UsageError
from shoal.model.nn.sampling_params import SamplingParams
from shoal.server.server import Server
from shoal.types import Span
from tests.swarms import NUM_BLOCKS, Swarm, SwarmMaker, until

ALL = Span(0, NUM_BLOCKS)
THIRDS = (Span(0, 2), Span(2, 4), Span(4, 6))
PROMPT = "the sea, the sea"


async def reply(model: RemoteModel, prompt: str, **sampling: object) -> GrowingReply:
    """A whole reply in a session of its own."""
    params = SamplingParams(**{"max_tokens": 40, "ignore_eos": True, **sampling})
    result = GrowingReply(model.tokenizer.encode(prompt), params)
    options = SessionOptions(max_tokens=len(result.prompt_ids) + params.max_tokens)
    async with model.client.session(model.spec, options=options) as session:
        async for _ in SessionDecoder(model, session).generate(result):
            pass
    return result


async def opened(swarm: Swarm, model: Path | None = None) -> RemoteModel:
    """A client's model; the swarm alone says which unless a path is given."""
    client = await swarm.client().__aenter__()
    return await open_model(client, None if model is None else str(model))


def idle(server: Server) -> bool:
    """Whether a server holds no session and no page."""
    status = server.status()
    return status.sessions == 0 and status.free_tokens == status.total_tokens


async def hidden_states(swarm: Swarm, rows: torch.Tensor, **options: object) -> torch.Tensor:
    """What comes out of all blocks for these rows."""
    async with swarm.client() as client:
        spec = await client.find_model()
        async with client.session(spec, options=SessionOptions(max_tokens=256, **options)) as session:
            return await session.step(rows)


async def test_greedy_equals_transformers(swarm_of: SwarmMaker, tiny_model: Path) -> None:
    """Tokens through three servers are those of transformers' fp32 greedy generation."""
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(tiny_model).float().eval()
    reference.generation_config.eos_token_id = None
    async with swarm_of(*THIRDS) as swarm, await opened(swarm, tiny_model) as model:
        result = await reply(model, PROMPT)
    prompt = torch.tensor([result.prompt_ids])
    expected = reference.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        min_new_tokens=40,
        max_new_tokens=40,
        pad_token_id=0,
    )
    assert result.token_ids == expected[0, len(result.prompt_ids) :].tolist()
    assert result.exact
    assert result.finish_reason == "length"


async def test_bits_do_not_depend_on_the_route_or_the_chunks(swarm_of: SwarmMaker) -> None:
    """Hidden states are the same bits through 1, 2, 3 and 5 servers, and for any chunk size of the prefill."""
    rows = numbers(1, 70, 48)
    routes = [
        (ALL,),
        (Span(0, 5), Span(5, 6)),
        THIRDS,
        (Span(0, 1), Span(1, 2), Span(2, 3), Span(3, 4), Span(4, 6)),
    ]
    outputs = []
    for route in routes:
        async with swarm_of(*route) as swarm:
            outputs.append(await hidden_states(swarm, rows))
            if len(route) == 3:
                for chunk in (1, 7, 64):
                    outputs.append(await hidden_states(swarm, rows, prefill_chunk_rows=chunk))
    assert all(torch.equal(output, outputs[0]) for output in outputs)


async def test_clients_share_steps(swarm_of: SwarmMaker) -> None:
    """Rows of two clients that wait together are computed in one step, to the bits that each gets alone."""
    rows = numbers(10, 12, 48)
    async with swarm_of(ALL) as swarm, swarm.client() as first, swarm.client() as second:
        spec, worker = await first.find_model(), swarm.servers[0].worker
        expected = await hidden_states(swarm, rows)
        async with first.session(spec, max_tokens=16) as one, second.session(spec, max_tokens=16) as other:
            await one.step(rows[:5])
            gate = threading.Event()
            held = asyncio.ensure_future(worker.between_steps(lambda: gate.wait(10)))
            steps = asyncio.gather(one.step(rows[5:6]), other.step(rows))
            await until(lambda: worker.queued_rows == 13)
            gate.set()
            outputs = await steps
            await held
        assert worker.stats.max_batch_sessions == 2
    assert torch.equal(outputs[0], expected[5:6])
    assert torch.equal(outputs[1], expected)


async def test_company_changes_no_token(swarm_of: SwarmMaker) -> None:
    """Two clients that generate at once get what each gets alone."""
    prompts = ["one client says", "and another one asks for more"]
    async with swarm_of(*THIRDS) as swarm:
        async with await opened(swarm) as model:
            alone = [await reply(model, prompt, max_tokens=60) for prompt in prompts]
        async with await opened(swarm) as first, await opened(swarm) as second:
            together = await asyncio.gather(
                reply(first, prompts[0], max_tokens=60), reply(second, prompts[1], max_tokens=60)
            )
    assert [one.token_ids for one in together] == [one.token_ids for one in alone]


async def test_a_seed_draws_the_same_reply(swarm_of: SwarmMaker) -> None:
    """Sampling depends on the seed alone."""
    async with swarm_of(ALL) as swarm, await opened(swarm) as model:
        first, again, other = [await reply(model, PROMPT, temperature=1.0, seed=seed) for seed in (7, 7, 8)]
    assert first.token_ids == again.token_ids != other.token_ids


async def test_one_ticket_finds_every_server(swarm_of: SwarmMaker) -> None:
    """The ticket of one member is enough; the route and the trace name all three."""
    async with swarm_of(*THIRDS) as swarm, AsyncClient([swarm.servers[1].ticket], only="tls") as client:
        await until(lambda: len(swarm.servers[1].directory.records()) == 3)
        await client.refresh()
        spec = await client.find_model()
        async with client.session(spec, max_tokens=8) as session:
            await session.step(numbers(2, 3, 48))
            assert [hop.span for hop in session.route] == list(THIRDS)
            assert session.last_trace is not None
            assert [hop.name for hop in session.last_trace.hops] == ["server 0", "server 1", "server 2"]
            assert session.last_trace.network_s > 0


async def test_a_part_of_the_model(swarm_of: SwarmMaker) -> None:
    """A session over some blocks, from one server that holds more and one that holds the rest."""
    async with swarm_of(Span(0, 4), Span(3, 6)) as swarm, swarm.client() as client:
        spec = await client.find_model()
        rows = numbers(3, 5, 48)
        async with client.session(spec.name, "1:5", max_tokens=16) as session:
            assert [str(hop.span) for hop in session.route] == ["1:4", "4:5"]
            part = await session.step(rows)
        async with client.session(spec, Span(1, 2), max_tokens=16) as session:
            middle = await session.step(rows.unsqueeze(0))
        async with client.session(spec, Span(2, 5), max_tokens=16) as session:
            assert torch.equal((await session.step(middle))[0], part)


async def test_rewind_forgets(swarm_of: SwarmMaker) -> None:
    """After a rewind the stream goes on as if the rows had never been."""
    rows, wrong = numbers(4, 20, 48), numbers(5, 9, 48)
    async with swarm_of(*THIRDS) as swarm, swarm.client() as client:
        spec = await client.find_model()
        async with client.session(spec, max_tokens=64) as session:
            expected = await session.step(rows)
            await session.rewind(12)
            await session.step(wrong)
            await session.rewind(15)
            await session.rewind(10)
            assert session.position == 10
            assert torch.equal(await session.step(rows[10:]), expected[10:])
            with pytest.raises(UsageError, match="rewind"):
                await session.rewind(21)


async def test_only_the_rows_asked_for_come_back(swarm_of: SwarmMaker) -> None:
    """`reply=1` returns the last row alone."""
    rows = numbers(6, 90, 48)
    async with swarm_of(*THIRDS) as swarm, swarm.client() as client:
        async with client.session(await client.find_model(), max_tokens=128) as session:
            last = await session.step(rows, reply=1)
        assert torch.equal(last, (await hidden_states(swarm, rows))[-1:])


async def test_chat_pays_only_for_what_is_new(swarm_of: SwarmMaker) -> None:
    """A prompt that begins like the session's tokens is fed from where it differs."""
    params = SamplingParams(max_tokens=10, ignore_eos=True)
    async with swarm_of(*THIRDS) as swarm, await opened(swarm) as model:
        async with model.client.session(model.spec, max_tokens=256) as session:
            talk = SessionDecoder(model, session)
            prompt = model.tokenizer.encode("hello there")
            first = GrowingReply(prompt, params)
            async for _ in talk.generate(first):
                pass
            longer = [*prompt, *first.token_ids, *model.tokenizer.encode(" and then")]
            second = GrowingReply(longer, params)
            async for _ in talk.generate(second):
                pass
        assert second.prefill_tokens < len(longer) - len(prompt)
        fresh = await reply(model, "x", max_tokens=1)
        assert fresh.prefill_tokens == 1
        async with model.client.session(model.spec, max_tokens=256) as session:
            alone = GrowingReply(longer, params)
            async for _ in SessionDecoder(model, session).generate(alone):
                pass
    assert second.token_ids == alone.token_ids


async def test_cancelling_takes_the_rows_back(swarm_of: SwarmMaker) -> None:
    """A step that is cancelled leaves the session where it was, at every hop."""
    rows = numbers(7, 200, 48)
    async with swarm_of(*THIRDS) as swarm, swarm.client() as client:
        async with client.session(await client.find_model(), max_tokens=256) as session:
            await session.step(rows[:4])
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(session.step(rows[4:]), 0.001)
            assert session.position == 4
            rest = await session.step(rows[4:30])
        assert torch.equal(rest, (await hidden_states(swarm, rows[:30]))[4:])


async def test_leaving_a_stream_early_ends_the_session(swarm_of: SwarmMaker) -> None:
    """A reply that is abandoned frees its pages."""
    async with swarm_of(*THIRDS) as swarm, await opened(swarm) as model:
        params = SamplingParams(max_tokens=200, ignore_eos=True)
        async with model.client.session(model.spec, max_tokens=256) as session:
            stream = SessionDecoder(model, session).generate(GrowingReply(model.tokenizer.encode(PROMPT), params))
            await anext(stream)
            await stream.aclose()
        await until(lambda: all(idle(server) for server in swarm.servers))


async def test_missing_blocks_are_named(swarm_of: SwarmMaker) -> None:
    """No route: the error says which blocks nobody serves."""
    async with swarm_of(Span(0, 2), Span(4, 6)) as swarm, swarm.client() as client:
        with pytest.raises(NoRoute, match="2:4") as caught:
            async with client.session(await client.find_model(), wait_s=0):
                pass
    assert caught.value.missing == ((2, 4),)


async def test_a_full_server_refuses_with_a_time(swarm_of: SwarmMaker) -> None:
    """Beyond --max-sessions a session is refused, and works once there is room."""
    async with swarm_of(ALL, max_sessions=1) as swarm, swarm.client() as client:
        spec = await client.find_model()
        async with client.session(spec, max_tokens=8) as session:
            with pytest.raises(ServerFull) as caught:
                async with client.session(spec, max_tokens=8, wait_s=0.5):
                    pass
            assert caught.value.retry_after > 0
            await session.step(numbers(8, 2, 48))
        await until(lambda: idle(swarm.servers[0]))
        async with client.session(spec, max_tokens=8) as session:
            await session.step(numbers(8, 2, 48))


async def test_a_full_cache_refuses_and_another_server_is_taken(swarm_of: SwarmMaker) -> None:
    """A server without pages for a session is avoided when another holds the blocks."""
    async with swarm_of(ALL, ALL, max_sessions=1) as swarm, swarm.client() as client:
        spec = await client.find_model()
        async with client.session(spec, max_tokens=8) as first, client.session(spec, max_tokens=8) as second:
            assert first.route[0].peer != second.route[0].peer


async def test_more_tokens_than_granted(swarm_of: SwarmMaker) -> None:
    """A step beyond the session's room fails alone; the session goes on."""
    async with swarm_of(*THIRDS) as swarm, swarm.client() as client:
        spec = await client.find_model()
        async with client.session(spec, max_tokens=8) as session:
            await session.step(numbers(9, 6, 48))
            with pytest.raises(GrantExceeded):
                await session.step(numbers(9, 3, 48))
            await session.step(numbers(9, 2, 48))
        with pytest.raises(GrantExceeded):
            async with client.session(spec, max_tokens=100_000):
                pass


async def test_wrong_shapes_are_this_sides_mistake(swarm_of: SwarmMaker) -> None:
    """Rows of another width never leave the client."""
    async with swarm_of(ALL) as swarm, swarm.client() as client:
        async with client.session(await client.find_model(), max_tokens=8) as session:
            for shape in ((3, 47), (48,), (2, 1, 48), (0, 48)):
                with pytest.raises(UsageError):
                    await session.step(torch.zeros(shape))
