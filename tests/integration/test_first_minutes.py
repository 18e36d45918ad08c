"""A user's first minutes in Python: what people pass is taken, or the error says what is wanted."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
import torch

import shoal
from shoal.types import Span
from tests.integration.test_sync import ALL, GREEDY, PROMPT, connected, idle
from tests.swarms import NUM_BLOCKS, SwarmMaker


async def test_what_people_pass(swarm_of: SwarmMaker, tmp_path: Path) -> None:
    """Token ids as an array, one stop text, a path as a text, one ticket."""

    def use() -> tuple[shoal.Completion, ...]:
        with shoal.connect(peers=swarm.ticket, transport="tls") as model:
            text = model.generate(PROMPT, **GREEDY)
            array = model.generate(np.array(text.prompt_ids), **GREEDY)
            kept = model.generate(PROMPT, save=str(tmp_path / "reply"), stop="\0", **GREEDY)
            assert repr(model).startswith("<Model 'tiny-llama")
            by_name = model.resume(tmp_path / "reply").finish()
            with pytest.raises(shoal.UsageError, match="from a path"):
                model.resume(None)  # type: ignore[arg-type]  # what people pass
            return text, array, kept, by_name, model.resume(shoal.read_saved(str(tmp_path / "reply"))).finish()

    async with swarm_of(ALL) as swarm:
        replies = await asyncio.to_thread(use)
    assert len({reply.token_ids for reply in replies}) == 1


async def test_a_model_by_its_path(swarm_of: SwarmMaker, tiny_model: Path) -> None:
    """As a path too; what is no name, or leads nowhere, is told before a member is asked."""

    def use() -> str:
        with shoal.connect(tiny_model, peers=swarm.ticket, transport="tls") as model:
            return repr(model)

    async with swarm_of(ALL) as swarm:
        assert "tiny-llama" in await asyncio.to_thread(use)
    for model, error in (
        (5, shoal.UsageError),
        (b"model", shoal.UsageError),
        ("caf\udce9", shoal.UsageError),
        ("/no/such/model", shoal.ModelNotFound),
        (Path("/no/such/model"), shoal.ModelNotFound),
        ("no-such-file.gguf", shoal.ModelNotFound),
        ("a\0b", shoal.ModelNotFound),
    ):
        with pytest.raises(error):  # and not that no member answers
            shoal.connect(model, peers=swarm.ticket, transport="tls")  # type: ignore[arg-type]  # what people pass


async def test_rows_as_an_array_and_spans_as_a_pair(swarm_of: SwarmMaker) -> None:
    """The same outputs as from a tensor."""
    async with swarm_of(ALL) as swarm, swarm.client() as client:
        name = client.records()[0].model.name
        rows = np.random.default_rng(1).standard_normal((3, 48))
        outputs = []
        for span in ((0, NUM_BLOCKS), [0, NUM_BLOCKS], range(NUM_BLOCKS), f"0:{NUM_BLOCKS}", ALL):
            async with client.session(name, span, max_tokens=8) as session:
                outputs.append(await session.step(rows))
                assert repr(session) == f"<Session {name!r} blocks 0:{NUM_BLOCKS}, 3 rows>"
        assert all(torch.equal(one, outputs[0]) for one in outputs)
        for span in ((0,), (3, 1), "x", (0.0, 1.0), object()):
            with pytest.raises(shoal.SpanError):
                client.session(name, span)  # type: ignore[arg-type]  # what people pass
        assert "servers known" in repr(client)
    assert "not open" in repr(client)
    with pytest.raises(shoal.UsageError, match="not open"):
        async with client.session(name, (0, NUM_BLOCKS)):
            pass


async def test_a_closed_model_says_so_whatever_is_asked(swarm_of: SwarmMaker) -> None:
    """And its sessions end at once, also that of a stream which was left open."""

    def use() -> None:
        model = connected(swarm)
        stream, talk = model.stream(PROMPT, max_tokens=400, ignore_eos=True), model.chat()
        next(stream)
        model.close()
        assert "closed" in repr(model)
        for attempt in (
            lambda: model.generate(PROMPT),
            lambda: model.stream(PROMPT),
            lambda: model.chat(),
            lambda: next(stream),
            lambda: talk.say("hello"),
        ):
            with pytest.raises(shoal.UsageError, match="closed"):
                attempt()

    async with swarm_of(ALL) as swarm:
        await asyncio.to_thread(use)
        assert all(server.status().sessions == 0 for server in swarm.servers) or await idle(swarm) is None


def test_the_names_are_listed() -> None:
    """Where people look for them."""
    assert {"connect", "connect_async", "read_saved", "Model"} <= set(dir(shoal))
    with pytest.raises(shoal.UsageError, match=r"no option 'max_new_tokens' \(did you mean max_tokens\?\); there are"):
        shoal.connect(max_new_tokens=3)
    assert Span.of((1, 2)) == Span(1, 2)
