"""Text that comes in pieces, broken between words."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from shoal.cli.word_wrap import LONG_WORD, WordWrap

TEXT = "The sea is salty because rivers carry salts from the rocks of the land, and no river carries them away again."


def wrapped(text: str, width: int, size: int = 1) -> list[str]:
    """The lines of a text that comes in pieces of a size."""
    wrap = WordWrap(width)
    shown = [wrap.taken(text[at : at + size]) for at in range(0, len(text), size)]
    return "".join([*shown, wrap.rest()]).split("\n")


@pytest.mark.parametrize("size", [1, 3, 200])
@pytest.mark.parametrize("width", [10, 24, 40, 80])
def test_no_word_is_broken(width: int, size: int) -> None:
    """However the text comes; no line is longer than it may be, and none is broken too early."""
    lines = wrapped(TEXT, width, size)
    assert " ".join(" ".join(lines).split()) == TEXT
    assert all(cell_len(line) <= width for line in lines)
    for line, following in itertools.pairwise(lines):
        assert len(line.rstrip()) + 1 + len(following.split()[0]) > width - 1


def test_words_come_as_they_are_written() -> None:
    """Far from the edge; near to it they are whole before they are seen."""
    wrap = WordWrap(40)
    assert wrap.taken("The s") == "The s"
    assert wrap.taken("ea is as salt") == "ea is as salt"
    assert wrap.taken("y as ever, and") == "y as ever, "
    assert wrap.taken(" mo") == "and "
    assert wrap.rest() == "mo"


def test_a_line_of_its_own_is_kept() -> None:
    """Breaks, indents and empty lines of the text itself."""
    code = "def sea():\n    return 'salt'\n\n\tx = 1\n"
    assert wrapped(code, 80) == code.split("\n")


def test_what_is_longer_than_a_line() -> None:
    """The terminal breaks it; what follows is broken where it has to be."""
    lines = wrapped(f"at {'x' * 100} the sea is", 40)
    assert lines[0] in ("at", "at ") or lines[0].startswith("at x")
    assert "".join(lines).replace(" ", "") == f"at{'x' * 100}theseais"


def test_wide_letters() -> None:
    """They take two cells."""
    assert all(cell_len(line) <= 40 for line in wrapped("海 は 広い な 大きい な " * 9, 40))


@given(st.text(), st.integers(1, 100), st.integers(1, 9))
def test_nothing_is_lost(text: str, width: int, size: int) -> None:
    """Whatever the text is: only blanks give way to breaks."""
    assert "".join("".join(wrapped(text, width, size)).split()) == "".join(text.split())


def test_a_long_word_is_shorter_than_a_line() -> None:
    """Else no word would be seen as it comes in a terminal of the common width."""
    assert LONG_WORD < 40
