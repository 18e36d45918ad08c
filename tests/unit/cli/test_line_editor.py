"""Lines that a user types."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace

import pytest

from shoal.cli.line_editor import LineEditor


class Terminal(io.StringIO):
    """Where somebody sits."""

    def isatty(self) -> bool:
        """Yes."""
        return True


class Interrupted(Terminal):
    """Where somebody presses Ctrl-C."""

    def readline(self, size: int | None = -1) -> str:  # type: ignore[override]
        """As a terminal does it."""
        raise KeyboardInterrupt


def test_the_end_of_input_ends_the_chat(monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty lines do not."""
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n\nlast"))
    editor = LineEditor(None)
    assert [editor.ask() for _ in range(4)] == ["hello", "", "last", None]


def test_ctrl_c_at_the_prompt_ends_the_chat(monkeypatch: pytest.MonkeyPatch, said: io.StringIO) -> None:
    """The prompt is for a terminal only, and not for programs."""
    monkeypatch.setattr("sys.stdin", Interrupted())
    assert LineEditor(None, prompts=False).ask() is None
    assert said.getvalue() == ""
    assert LineEditor(None).ask() is None
    assert said.getvalue() == "> \n"


def test_a_terminal_has_a_history(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is read before the first line and written after the last, for its owner alone."""
    calls: list[str] = []
    fake = SimpleNamespace(
        set_history_length=lambda most: calls.append("bounded"),
        read_history_file=lambda path: calls.append("read"),
        write_history_file=lambda path: calls.append("written"),
    )
    monkeypatch.setitem(__import__("sys").modules, "readline", fake)
    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr("sys.stdout", Terminal())
    monkeypatch.setattr("builtins.input", lambda prompt: "edited")
    history = tmp_path / "state" / "history"
    with LineEditor(history) as editor:
        assert editor.ask() == "edited"
    assert calls == ["bounded", "read", "written"]
    assert history.stat().st_mode & 0o777 == 0o600
    calls.clear()
    with LineEditor(None):
        pass
    assert calls == []
