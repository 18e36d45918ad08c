"""Conversations: what enters their history, one turn at a time, on both faces."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import shoal
from shoal.model.weights.chat_template import Message
from shoal.model.weights.tokenizer import Tokenizer
from shoal.types import Span
from tests.integration.test_sync import ALL, blocking, connected, idle
from tests.swarms import SwarmMaker

TEMPLATE = "{% for message in messages %}{{ message.role[0] }}:{{ message.content }}\n{% endfor %}"
TURN = {"max_tokens": 8, "ignore_eos": True}


@pytest.fixture
def talkative(tiny_model: Path, tmp_path: Path) -> Path:
    """The tiny model with a chat template: the same checkpoint to a swarm."""
    model = shutil.copytree(tiny_model, tmp_path / tiny_model.name)
    (model / "chat_template.jinja").write_text(TEMPLATE)
    return model


async def test_a_turn_enters_the_history_when_it_has_succeeded(swarm_of: SwarmMaker, talkative: Path) -> None:
    """Failed ones, ones left early and ones never read do not; a turn costs its new tokens only."""

    def use() -> None:
        with connected(swarm, talkative) as remote, remote.chat(system="Be brief.", max_tokens=200) as talk:
            first = talk.say("hello", **TURN)
            assert [message["role"] for message in talk.messages] == ["system", "user", "assistant"]
            assert talk.messages[-1]["content"] == first.text
            held = talk.messages
            with pytest.raises(shoal.UsageError, match="temperature"):
                talk.say("hello", temperature=-1)
            with pytest.raises(shoal.GrantExceeded):
                talk.say("x" * 300)
            talk.stream("never read")
            with talk.stream("left", **TURN) as left:
                next(left)
            abandoned = talk.stream("abandoned", **TURN)
            next(abandoned)
            assert talk.messages == held
            second = talk.say("and then", **TURN)
            assert list(abandoned) == []
            assert [message["content"] for message in talk.messages[3:]] == ["and then", second.text]
            assert second.usage.cached_tokens > 0
            with ThreadPoolExecutor(2) as threads:
                answers = list(threads.map(lambda text: talk.say(text, **TURN), ["one", "two"]))
            assert {message["content"] for message in talk.messages[5:]} >= {"one", "two", *map(str, answers)}
            assert len(talk.messages) == 9

    async with swarm_of(ALL) as swarm:
        await blocking(use)
        await idle(swarm)


async def test_two_turns_at_once_follow_one_another(swarm_of: SwarmMaker, talkative: Path) -> None:
    """In asyncio code too: the second is asked with the first in its history."""
    async with swarm_of(Span(0, 3), Span(3, 6)) as swarm:
        async with await shoal.connect_async(str(talkative), peers=[swarm.ticket], transport="tls") as model:
            async with await model.chat() as talk:
                answers = await asyncio.gather(talk.say("one", **TURN), talk.say("two", **TURN))
                said = [message["content"] for message in talk.messages]
                assert said == ["one", str(answers[0]), "two", str(answers[1])]
                with pytest.raises(shoal.UsageError, match="gone on"):
                    stale = talk.stream("three", **TURN)
                    await talk.say("four", **TURN)
                    await anext(stale)
            with pytest.raises(shoal.UsageError, match="conversation is closed"):
                talk.stream("five")
            async with await model.chat() as other:
                assert model._chats == [other]  # the one that has ended is forgotten
        await idle(swarm)


async def test_others_go_on_while_a_prompt_is_put_into_its_template(
    swarm_of: SwarmMaker, talkative: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A template is a program that takes its time: other replies of the same client, and of its loop, get on meanwhile."""
    went_on = threading.Event()
    encode_chat = Tokenizer.encode_chat

    def slowly(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
        assert went_on.wait(20.0), "nothing went on meanwhile"
        return encode_chat(tokenizer, messages)

    async with swarm_of(ALL) as swarm:
        async with await shoal.connect_async(str(talkative), peers=[swarm.ticket], transport="tls") as model:
            async with await model.chat() as talk, model.stream("the sea", max_tokens=64, ignore_eos=True) as other:
                await anext(other)
                monkeypatch.setattr(Tokenizer, "encode_chat", slowly)
                for turn in (lambda: talk.say("hello", **TURN), lambda: model.generate("hello", raw=False, **TURN)):
                    went_on.clear()
                    asked = asyncio.create_task(turn())
                    for _ in range(8):
                        await anext(other)
                        assert not asked.done()
                    went_on.set()
                    assert len((await asked).token_ids) == 8


async def test_a_reply_that_is_left_while_its_prompt_is_put_into_the_template(
    swarm_of: SwarmMaker, talkative: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends at once, and the model closes at once; the template's thread ends by itself."""
    begun, ends = threading.Event(), threading.Event()

    def slowly(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
        begun.set()
        ends.wait(20.0)
        return [1]

    monkeypatch.setattr(Tokenizer, "encode_chat", slowly)
    async with swarm_of(ALL) as swarm:
        async with await shoal.connect_async(str(talkative), peers=[swarm.ticket], transport="tls") as model:
            stream = model.stream("hello", raw=False)
            assert stream.prompt_ids == ()
            reading = asyncio.create_task(anext(stream))
            await asyncio.to_thread(begun.wait, 20.0)
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
        assert not ends.is_set()
        ends.set()
        await idle(swarm)
