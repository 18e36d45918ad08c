"""What commands print: text from outside stays text."""

from __future__ import annotations

import ast
import io
from pathlib import Path

import pytest

import shoal.cli
from shoal.cli.output import report
from shoal.cli.terminal import ReplyText, console, escaped, say, say_table, styled, write
from shoal.errors import NetworkError

ODD = {
    "markup": "a [/oops] and [bold]b[/bold]",
    "a path": "/tmp/[x]/model",
    "IPv6": "tls://[::1]:4433",
    "emoji": ":smile: :warning:",
    "braces": "{0} %s \\n",
}


@pytest.mark.parametrize("text", ODD.values(), ids=ODD)
def test_text_is_no_markup(text: str, said: io.StringIO) -> None:
    """Brackets, colons and backslashes come out as they are, wherever the text stands."""
    say(text)
    say(styled(text, "bold red"))
    report(NetworkError(text))
    say_table(("what", "text"), [("first", text), (text, styled(text, "red"))])
    assert said.getvalue().count(text) == 6


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred", r"\x1b[31mred"),
        ("\x9b2J", r"\x9b2J"),
        ("one\rtwo", r"one\x0dtwo"),
        ("\x07\x08\x00\x7f", r"\x07\x08\x00\x7f"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("a\u2028b", r"a\u2028b"),
        ("\udcff", r"\udcff"),
        ("tab\tand words", "tab\tand words"),
        ("Grüße, 世界 👩‍🚀", "Grüße, 世界 👩‍🚀"),
    ],
)
def test_controls_are_shown(text: str, shown: str) -> None:
    """What a terminal would obey is escaped; letters of all languages are not."""
    assert escaped(text) == shown


def test_a_message_cannot_look_like_two(said: io.StringIO) -> None:
    """The further lines of one are indented."""
    say("one\nerror (this side): another")
    assert said.getvalue() == "one\n  error (this side): another\n"


def test_controls_reach_no_terminal(said: io.StringIO) -> None:
    """Not in messages, errors or tables."""
    report(NetworkError("\x1b]0;title\x07\x9b2J"))
    say_table(("what",), [("\x1b[2J",), (styled("\x9b2J", "red"),)])
    assert not {"\x1b", "\x9b", "\x07"} & set(said.getvalue())


class Screen(io.StringIO):
    """Standard output that is a terminal."""

    def isatty(self) -> bool:
        """Yes."""
        return True


def test_results_are_exact_but_for_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe gets a reply's own characters, a terminal what it can show."""
    for stream, shown in ((io.StringIO(), "\x1b[31m\n"), (Screen(), "\\x1b[31m\n")):
        monkeypatch.setattr("sys.stdout", stream)
        write("\x1b[31m\n")
        assert stream.getvalue() == shown


def test_a_reply_is_broken_between_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal as wide as it is; a pipe gets the reply's own characters. Controls are shown in both ways of showing."""
    monkeypatch.setenv("COLUMNS", "30")
    pieces = ("The sea is salty beca", "use rivers carry sa", "lts to it, and \x1b", "[31m no more")
    for stream, shown in (
        (io.StringIO(), "".join(pieces) + "\n"),
        (Screen(), "The sea is salty because \nrivers carry salts to it, and\n\\x1b[31m no more\n"),
    ):
        monkeypatch.setattr("sys.stdout", stream)
        reply = ReplyText()
        for piece in pieces:
            reply.write(piece)
        reply.end()
        assert stream.getvalue() == shown


@pytest.mark.parametrize(("text", "always", "shown"), [("", False, ""), ("a\n", False, "a\n"), ("a\n", True, "a\n\n")])
@pytest.mark.parametrize("screen", [io.StringIO, Screen])
def test_where_a_reply_ends(
    text: str, always: bool, shown: str, screen: type[io.StringIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line that is begun ends there."""
    stream = screen()
    monkeypatch.setattr("sys.stdout", stream)
    reply = ReplyText()
    reply.write(text)
    reply.end(always)
    assert stream.getvalue() == shown


def test_a_message_is_broken_between_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal; what is longer than a line stays whole, and so does what is there to be copied."""
    screen = Screen()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(console, "file", screen)
    monkeypatch.setattr(console, "_width", 30)
    monkeypatch.setattr(console, "_color_system", None)
    say("error: no server of this model answers ", "x" * 40, " now")
    say("shoal resume 'a folder/with a reply in it'", whole=True)
    assert screen.getvalue().splitlines() == [
        "error: no server of this model",
        "  answers",
        "  " + "x" * 40,
        "  now",
        "shoal resume 'a folder/with a reply in it'",
    ]


@pytest.mark.parametrize("width", [18, 200])
def test_a_table_is_never_cut(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal that is too narrow gets lines; a file as wide a table as it takes."""
    titles, row = ("server", "blocks", "tokens"), ("first", "10:20", styled("610k", "red"))
    for screen, table in ((Screen(), width >= 80), (io.StringIO(), True)):
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setattr(console, "file", screen)
        monkeypatch.setattr(console, "_width", width)
        monkeypatch.setattr(console, "_color_system", None)
        say_table(titles, [row, ("second", "", "x")])
        lines = [line.rstrip() for line in screen.getvalue().splitlines()]
        if table:
            assert lines == ["server blocks tokens", "first   10:20   610k", "second             x"]
        else:
            assert lines == ["first · blocks", "  10:20 · tokens", "  610k", "second · tokens x"]


def test_nothing_else_prints() -> None:
    """In the command line every print goes through the functions of one module."""
    folder = Path(shoal.cli.__file__).parent
    for path in folder.glob("*.py"):
        if path.name == "terminal.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            assert called not in ("print", "console.print", "typer.echo", "typer.secho"), path
            assert not called.endswith(("stdout.write", "stderr.write")), path
