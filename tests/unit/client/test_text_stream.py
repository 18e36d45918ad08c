"""Text that grows by whole characters and ends before a stop string; tests/property/test_text.py has what holds always."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from shoal.client.text_stream import KEPT_TOKENS, MAX_WINDOW_TOKENS, REPLACEMENT, TextStream
from shoal.errors import ModelNotFound
from shoal.model.weights.model_source import demo_model_path, open_checkpoint
from shoal.model.weights.tokenizer import Tokenizer, load_tokenizer
from tests.property.test_text import Pieces, stream_all


def test_text_comes_as_soon_as_it_is_whole() -> None:
    """Tokens that end inside a character give the characters before it, again and again."""
    text = "€" * 40
    toy = Pieces(text.encode(), [1, *[3] * 40])
    pieces, _ = stream_all(toy.decode, toy.tokens)
    assert pieces == ["", *["€"] * 40, ""]


@pytest.mark.parametrize("data", [b"\xff" * 300, "€".encode() * 300, b"a" * 300])
def test_decoding_costs_the_same_per_token(data: bytes) -> None:
    """No window is longer than its bound, whatever the bytes and wherever the tokens end."""
    toy, longest = Pieces(data, [1, 2, 3]), 0

    def decode(tokens: Sequence[int]) -> str:
        nonlocal longest
        longest = max(longest, len(tokens))
        return toy.decode(tokens)

    stream_all(decode, toy.tokens)
    assert longest <= MAX_WINDOW_TOKENS + 1
    assert KEPT_TOKENS < MAX_WINDOW_TOKENS


def test_what_may_become_a_stop_string_waits() -> None:
    """Only as long as it still may."""
    stream = TextStream(bytes_to_text, ["END"])
    assert [stream.push(byte) for byte in b"xENxEN"] == ["x", "", "", "ENx", "", ""]
    assert stream.finish() == "EN"


@pytest.mark.parametrize("sizes", [[1], [2], [3], [9]])
def test_a_stop_string_is_found_however_tokens_divide_it(sizes: list[int]) -> None:
    """Of two that overlap the one that is complete first counts; of two that end together the longer."""
    toy = Pieces(b"xabcyz", sizes)
    assert "".join(stream_all(toy.decode, toy.tokens, ["abcy", "bc"])[0]) == "xa"
    assert "".join(stream_all(toy.decode, toy.tokens, ["bc", "abc"])[0]) == "x"


def test_after_the_stop_nothing_comes() -> None:
    """More tokens change nothing, and finishing twice is harmless."""
    stream = TextStream(bytes_to_text, ["!"])
    assert stream.push(ord("a")) == "a"
    assert stream.push(ord("!")) == ""
    assert stream.stopped
    assert [stream.push(ord("b")), stream.finish(), stream.finish()] == ["", "", ""]


def test_a_reply_of_nothing_is_empty() -> None:
    """Whatever its prompt ends with."""
    for before in (b"", b"sea", "€".encode()[:2], b"\xff" * 40):
        assert TextStream(bytes_to_text, before=before).finish() == ""


def words_to_text(tokens: Sequence[int]) -> str:
    """As sentencepiece does it: every word has a space before it, but for the first that is shown; 0 is a special token."""
    return "".join(["", " is", " sa", "lty", "\n"][token] for token in tokens).removeprefix(" ")


@pytest.mark.parametrize(
    ("before", "expected"),
    [([], "is salty"), ([0], "is salty"), ([1], " is salty"), ([1, 0], " is salty"), ([1, 0, 4], " is salty")],
)
def test_the_first_space_is_kept(before: list[int], expected: str) -> None:
    """After a prompt that shows anything; text from nothing has none."""
    assert "".join(stream_all(words_to_text, [1, 2, 3], before=before)[0]) == expected


def bytes_to_text(tokens: Sequence[int]) -> str:
    """A token is a byte."""
    return bytes(tokens).decode("utf-8", "replace")


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
    pieces, _ = stream_all(tokenizer.decode, tokenizer.encode(text))
    assert "".join(pieces) == text
    assert not any(REPLACEMENT in piece for piece in pieces)


def test_any_token_of_a_real_tokenizer(tokenizer: Tokenizer) -> None:
    """A hot model draws tokens that fit together badly: the pieces are what decoding all of them gives."""
    tokens = [(index * 7919 + index * index) % 49152 for index in range(600)]
    pieces, _ = stream_all(tokenizer.decode, tokens)
    assert "".join(pieces) == tokenizer.decode(tokens)
