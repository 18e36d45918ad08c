"""`shoal chat`: one turn after another, whatever happens to one of them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from shoal.cli.chat import _answer, _turn
from shoal.cli.chat_commands import ChatCommands
from shoal.errors import GrantExceeded, ServerFull, ShoalError
from tests.unit.cli.replies import Stream

Asked = list[tuple[str, dict[str, Any]]]


def chat_with(stream: Stream, asked: Asked) -> Callable[..., Any]:
    """A chat's `stream`, which notes what it is asked."""

    def begin(line: str, **sampling: Any) -> Stream:
        asked.append((line, sampling))
        return stream

    return begin


def test_a_turn(capsys: pytest.CaptureFixture[str]) -> None:
    """The line and the sampling go to the chat; the answer comes as it grows, and its stream is closed."""
    asked: Asked = []
    stream = Stream("a ", "reply")
    _turn(chat_with(stream, asked), "hello", {"temperature": 0.5}, as_json=False)
    assert asked == [("hello", {"temperature": 0.5})]
    assert capsys.readouterr().out == "a reply\n"
    assert stream.closed


def test_a_turn_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    """One document a turn, with the rows that its question took."""
    _turn(chat_with(Stream("a ", "reply"), []), "hello", {}, as_json=True)
    assert json.loads(capsys.readouterr().out) == {"text": "a reply", "prefill_rows": 3}


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (KeyboardInterrupt(), "the question is forgotten"),
        (ServerFull("no room", 3.0), "try again in 3 s"),
        (GrantExceeded("too long"), "--context"),
        (ShoalError("something else"), "something else"),
    ],
)
def test_the_chat_goes_on_after(error: BaseException, words: str, said: io.StringIO) -> None:
    """Ctrl-C and errors end one answer only."""
    stream = Stream("a ", error)
    _turn(chat_with(stream, []), "hello", {}, as_json=False)
    assert words in said.getvalue()
    assert stream.closed


def test_a_command_says_nothing_to_the_model(said: io.StringIO) -> None:
    """An unknown one is told; for programs every line is said."""
    asked: Asked = []
    talk = SimpleNamespace(messages=(), begin=lambda messages: None)
    for line, as_json in (("/help", False), ("/oops", False), ("//a", False), ("/help", True), ("  ", False)):
        _answer(chat_with(Stream("a"), asked), ChatCommands(talk), line, {}, as_json)  # type: ignore[arg-type]
    assert [line for line, _ in asked] == ["/a", "/help"]
    assert "/retry" in said.getvalue()
    assert "there is no /oops" in said.getvalue()


def test_a_question_that_was_interrupted_is_asked_again(said: io.StringIO) -> None:
    """By `/retry`, as what is said at the interruption tells."""
    asked: Asked = []
    talk = SimpleNamespace(messages=(), begin=lambda messages: None)
    commands = ChatCommands(talk)  # type: ignore[arg-type]
    for line in ("hello", "/retry"):
        _answer(chat_with(Stream("a ", KeyboardInterrupt()), asked), commands, line, {}, as_json=False)
    assert [line for line, _ in asked] == ["hello", "hello"]
    assert "/retry asks it again" in said.getvalue()
