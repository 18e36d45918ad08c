"""Text that comes from outside."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.types import is_plain, plain


@pytest.mark.parametrize("text", ["", "a name", "Ω 名前 🐟", "[red]", "é" * 64])
def test_plain_text(text: str) -> None:
    """Letters of any script, signs and spaces stay as they are."""
    assert is_plain(text)
    assert plain(text, 64) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("two\nlines", "two?lines"),
        ("end\n", "end?"),
        ("\x1b[2J", "?[2J"),
        ("\x9b", "?"),
        ("\u202eright to left", "?right to left"),
        ("\u2028", "?"),
        ("a mark \u200f\u200e\u061c", "a mark ???"),
        ("al\u200bi\u2060ce\ufeff", "al?i?ce?"),
        ("no character \udcff", "no character ?"),
    ],
)
def test_text_with_controls(text: str, shown: str) -> None:
    """What would move a cursor, break a line or turn the writing round becomes a question mark."""
    assert not is_plain(text) or "\udcff" in text
    assert plain(text, 64) == shown


@given(st.text(st.characters()), st.integers(0, 99))
def test_plain_of_any_text(text: str, max_chars: int) -> None:
    """It is plain, no longer than asked for, and can be encoded."""
    shown = plain(text, max_chars)
    assert is_plain(shown)
    assert len(shown.encode().decode()) == min(len(text), max_chars)
