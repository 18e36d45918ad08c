"""The blocking face and its asynchronous twin: the same replies, from threads, notebooks and event loops."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest

import shoal
from shoal.types import Span
from tests.swarms import NUM_BLOCKS, Swarm, SwarmMaker, until

ALL = Span(0, NUM_BLOCKS)
THIRDS = (Span(0, 2), Span(2, 4), Span(4, 6))
PROMPT = "the sea, the sea"
GREEDY = {"max_tokens": 24, "ignore_eos": True}

T = TypeVar("T")


def connected(swarm: Swarm, model: Path | None = None) -> shoal.Model:
    """A model from blocking code."""
    return shoal.connect(None if model is None else str(model), peers=[swarm.ticket], transport="tls")


async def blocking(work: Callable[[], T]) -> T:
    """Work of a thread; the servers are in this one."""
    return await asyncio.to_thread(work)


async def idle(swarm: Swarm) -> None:
    """No server holds a session."""
    await until(lambda: all(server.status().sessions == 0 for server in swarm.servers))


async def test_both_faces_give_the_same_reply(swarm_of: SwarmMaker) -> None:
    """A whole one and a stream of it, from a text and from its tokens; each says all about itself."""

    def use(model: shoal.Model) -> tuple[shoal.Completion, shoal.Completion, shoal.Completion]:
        with model:
            stream = model.stream(PROMPT, **GREEDY)
            pieces = list(stream)
            assert "".join(pieces) == stream.text
            tokens = model.generate(stream.prompt_ids, **GREEDY)
            return model.generate(PROMPT, **GREEDY), stream.completion, tokens

    async with swarm_of(*THIRDS) as swarm:
        replies = await blocking(lambda: use(connected(swarm)))
        async with await shoal.connect_async(peers=[swarm.ticket], transport="tls") as model:
            stream = model.stream(PROMPT, **GREEDY)
            text = "".join([piece async for piece in stream])
            replies += (stream.completion, await model.generate(PROMPT, **GREEDY))
        await idle(swarm)
    for reply in replies:
        assert reply.token_ids == replies[0].token_ids
        assert str(reply) == text
        assert (reply.finish_reason, reply.usage.completion_tokens, reply.exact) == ("length", 24, True)
        assert [hop.span for hop in reply.route] == list(THIRDS)
        assert [hop.name for hop in reply.route] == ["server 0", "server 1", "server 2"]
        assert len(reply.traces) == 23
        assert reply.timings.decode_tokens_per_s > 0
        assert reply.failovers == ()


async def test_several_threads_use_one_model(swarm_of: SwarmMaker) -> None:
    """Each gets what it gets alone."""
    prompts = [f"number {index} says" for index in range(4)]

    def use() -> tuple[list[str], list[str]]:
        with connected(swarm) as model, ThreadPoolExecutor(4) as threads:
            alone = [str(model.generate(prompt, **GREEDY)) for prompt in prompts]
            return alone, list(threads.map(lambda prompt: "".join(model.stream(prompt, **GREEDY)), prompts))

    async with swarm_of(ALL) as swarm:
        alone, together = await blocking(use)
    assert alone == together


async def test_a_stream_left_early_ends_its_session(swarm_of: SwarmMaker) -> None:
    """By `with`, by closing the model; one that was never read has none."""

    def use() -> None:
        with connected(swarm) as model:
            with model.stream(PROMPT, max_tokens=400, ignore_eos=True) as stream:
                next(stream)
            assert stream.completion.finish_reason == ""
            assert list(stream) == []
            model.stream(PROMPT)
            left = model.stream(PROMPT, max_tokens=400, ignore_eos=True)
            next(left)
            talk = model.stream(PROMPT, max_tokens=400, ignore_eos=True)
            next(talk)
        assert list(left) == [] or pytest.fail("it went on")

    async with swarm_of(ALL) as swarm:
        with pytest.raises(shoal.UsageError, match="the model is closed"):
            await blocking(use)
        await idle(swarm)


async def test_a_closed_model_says_so(swarm_of: SwarmMaker) -> None:
    """Every use is an error of ours; closing twice is harmless."""

    def use() -> None:
        model = connected(swarm)
        talk = model.chat()
        model.close()
        model.close()
        talk.close()
        for attempt in (
            lambda: model.generate(PROMPT),
            lambda: model.stream(PROMPT),
            lambda: model.chat(),
        ):
            with pytest.raises(shoal.UsageError, match="the model is closed"):
                attempt()

    async with swarm_of(ALL) as swarm:
        await blocking(use)
        await idle(swarm)


async def test_mistakes_are_told_before_anything_is_asked(swarm_of: SwarmMaker) -> None:
    """At the call, not at the first piece."""

    def use() -> None:
        with connected(swarm) as model:
            for prompt, options, words in (
                (PROMPT, {"max_new_tokens": 3}, "max_tokens"),
                (PROMPT, {"temperature": -1}, "temperature"),
                ([], {}, "no tokens"),
                (["a"], {}, "token ids"),
                ([1], {"raw": False}, "token ids"),
                (PROMPT, {"raw": False}, "chat template"),
            ):
                with pytest.raises(shoal.UsageError, match=words):
                    model.stream(prompt, **options)
        with pytest.raises(shoal.UsageError, match="no option 'ticket'"):
            shoal.connect(ticket="x")
        with pytest.raises(shoal.UsageError, match="a ticket starts with"):
            shoal.connect(peers="x")

    async with swarm_of(ALL) as swarm:
        await blocking(use)


async def test_a_program_that_ends_without_closing_is_quiet(swarm_of: SwarmMaker, tiny_model: Path) -> None:
    """Its streams end at the servers; nothing is printed about it."""
    program = (
        "import shoal, sys\n"
        f"model = shoal.connect({str(tiny_model)!r}, peers=[sys.argv[1]], transport='tls')\n"
        f"stream = model.stream({PROMPT!r}, max_tokens=400, ignore_eos=True)\n"
        "print(len(next(stream)) > 0)\n"
    )
    async with swarm_of(ALL) as swarm:
        command = [sys.executable, "-c", program, swarm.ticket]
        done = await blocking(lambda: subprocess.run(command, capture_output=True, text=True, timeout=100, check=False))
        await idle(swarm)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


async def test_a_reader_that_goes_away_ends_the_command(swarm_of: SwarmMaker, tiny_model: Path) -> None:
    """`shoal generate … | head -c 3`: no traceback, and the session is over."""
    command = [sys.executable, "-m", "shoal.cli.main", "generate", PROMPT, "--raw", "--max-tokens", "400"]
    command += ["--model", str(tiny_model), "--transport", "tls", "--peers"]

    def use(ticket: str) -> tuple[bytes, bytes]:
        with subprocess.Popen([*command, ticket], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            began = process.stdout.read(1)
            process.stdout.close()
            said = process.stderr.read()
            process.wait(60)
            return began, said

    async with swarm_of(ALL) as swarm:
        began, said = await blocking(lambda: use(swarm.ticket))
        await idle(swarm)
    assert began
    assert b"Traceback" not in said
    assert b"closed" not in said


async def test_the_command_prints_the_whole_reply_as_json(swarm_of: SwarmMaker, tiny_model: Path) -> None:
    """Every field, those at their defaults too."""
    command = [sys.executable, "-m", "shoal.cli.main", "generate", PROMPT, "--raw", "--max-tokens", "4", "--json"]
    command += ["--model", str(tiny_model), "--transport", "tls", "--peers"]
    async with swarm_of(ALL) as swarm:
        done = await blocking(
            lambda: subprocess.run([*command, swarm.ticket], capture_output=True, text=True, timeout=100, check=True)
        )
    reply = json.loads(done.stdout)
    assert list(reply) == [
        *("text", "prompt_ids", "token_ids", "finish_reason", "seed", "exact", "route"),
        *("prefill_tokens_per_s", "decode_tokens_per_s", "heals", "trace"),
    ]
    assert reply["route"][0]["span"] == [0, 6]
