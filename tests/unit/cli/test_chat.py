"""`shoal chat`: one turn after another, whatever happens to one of them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import pytest

from shoal.cli.chat import _ask, _turn
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


def test_the_end_of_input_ends_the_chat(monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty lines do not."""
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n\nlast"))
    assert [_ask(as_json=True) for _ in range(4)] == ["hello", "", "last", None]


def test_ctrl_c_at_the_prompt_ends_the_chat(monkeypatch: pytest.MonkeyPatch, said: io.StringIO) -> None:
    """The prompt is for a terminal only."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

        def readline(self, size: int = -1) -> str:
            raise KeyboardInterrupt

    monkeypatch.setattr("sys.stdin", Terminal())
    assert _ask(as_json=True) is None
    assert said.getvalue() == ""
    assert _ask(as_json=False) is None
    assert said.getvalue() == "> "
