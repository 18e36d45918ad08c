"""Conversations: what enters their history, one turn at a time, on both faces."""

from __future__ import annotations

import asyncio
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import shoal
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
