"""What a terminal shows of what the command line writes."""

from __future__ import annotations

import pytest

from tests.support.screen import Screen


def shown(text: str) -> Screen:
    """A screen after this."""
    screen = Screen()
    screen.feed(text)
    return screen


def test_lines() -> None:
    """Text, returns, and what is written over."""
    assert shown("one\r\ntwo\rT").lines == ["one", "Two"]
    assert shown("a\b\bb\x1b[3Cc").lines == ["b   c"]


def test_a_status_line_beneath_a_reply() -> None:
    """It is drawn below an unfinished line and taken away, and the reply goes on where it was."""
    drawn = "\x1bD\x1b[A\x1b7\r\n\x1b[2Kwaiting\x1b8"
    screen = shown("the sea" + drawn)
    assert screen.lines == ["the sea", "waiting"]
    screen.feed("\x1b7\r\n\x1b[2K\x1b8 is large")
    assert screen.lines == ["the sea is large", ""]


def test_modes_and_what_is_unknown() -> None:
    """A mode stays on until it is switched off; colours change nothing."""
    screen = shown("\x1b[?2004h\x1b[1;31mred\x1b[0m\x1b[K")
    assert (screen.modes, screen.lines) == ({"2004"}, ["red"])
    screen.feed("\x1b[?2004l")
    assert screen.modes == set()
    with pytest.raises(ValueError, match="unknown"):
        shown("\x1b[5n")
