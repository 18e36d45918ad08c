"""Text that grows by whole characters and ends before a stop string."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.client.text import REPLACEMENT, TextStream
from shoal.errors import ModelNotFound
from shoal.weights.source import demo_model_path, open_checkpoint
from shoal.weights.tokenizer import Tokenizer, load_tokenizer

WORDS = ["a", "b", "ab", "ba", "€", "🐟", "魚", " ", "ü", "aab"]
texts = st.lists(st.sampled_from(WORDS), max_size=30).map("".join)


def decode_bytes(tokens: Sequence[int]) -> str:
    """A toy decoder: a token is a byte."""
    return bytes(tokens).decode("utf-8", "replace")


def cut(text: str, stops: Sequence[str]) -> str:
    """Up to the earliest stop string."""
    found = [at for at in (text.find(stop) for stop in stops) if at >= 0]
    return text[: min(found)] if found else text


@given(texts, st.lists(st.sampled_from([*WORDS, "abab", "b€", "🐟 "]), max_size=2))
def test_the_pieces_are_the_text(text: str, stops: list[str]) -> None:
    """Concatenated, the pieces are the whole text up to the earliest stop; none holds a part of a character."""
    stream, shown = TextStream(decode_bytes, stops), ""
    for token in text.encode():
        piece = stream.push(token)
        assert REPLACEMENT not in piece
        shown += piece
        if stream.stopped:
            break
    shown += stream.finish()
    assert shown == cut(text, stops)
    assert stream.stopped == (cut(text, stops) != text or any(text.endswith(stop) for stop in stops))


def test_what_may_become_a_stop_string_waits() -> None:
    """Only as long as it still may."""
    stream = TextStream(decode_bytes, ["END"])
    assert [stream.push(byte) for byte in b"xENxEN"] == ["x", "", "", "ENx", "", ""]
    assert stream.finish() == "EN"


def test_bytes_that_never_become_a_character_are_shown() -> None:
    """A reply of broken bytes is not held back for ever."""
    stream = TextStream(decode_bytes)
    shown = "".join(stream.push(0xFF) for _ in range(40)) + stream.finish()
    assert shown == REPLACEMENT * 40


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """The demo model's own."""
    try:
        return load_tokenizer(open_checkpoint(str(demo_model_path())))
    except ModelNotFound:
        pytest.skip("the demo's model is not installed")


@pytest.mark.parametrize(
    "text", ["Fish 🐟🐠 swim, 魚が泳ぐ。", "naïve — “quotes” … ‽", "  two  spaces\n\tand a tab", "🏳️‍🌈👩‍👩‍👧‍👦"]
)
def test_a_real_tokenizer(tokenizer: Tokenizer, text: str) -> None:
    """Emoji, Chinese characters, spaces: the pieces of its tokens are the text."""
    stream = TextStream(tokenizer.decode)
    pieces = [stream.push(token) for token in tokenizer.encode(text)] + [stream.finish()]
    assert "".join(pieces) == text
    assert not any(REPLACEMENT in piece for piece in pieces)
