"""What streamed text keeps for any text, any bytes, any cut into tokens and any stop strings."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hypothesis import example, given
from hypothesis import strategies as st

from shoal.client.text_stream import REPLACEMENT, TextStream

WORDS = ["a", "b", "ab", "ba", "€", "🐟", "魚", " ", "ü", "aab"]
words = st.lists(st.sampled_from(WORDS), max_size=30).map("".join)
texts = st.one_of(words, st.text(max_size=40))
stop_strings = st.lists(st.sampled_from([*WORDS, "abab", "b€", "🐟 "]), max_size=3)
cuts = st.lists(st.integers(1, 7), min_size=1, max_size=20)

Decode = Callable[[Sequence[int]], str]


class Pieces:
    """A byte-level tokenizer: a token is any run of bytes, characters notwithstanding."""

    def __init__(self, data: bytes, sizes: Sequence[int]) -> None:
        self.pieces: list[bytes] = []
        while data:
            size = sizes[len(self.pieces) % len(sizes)]
            self.pieces.append(data[:size])
            data = data[size:]

    def decode(self, tokens: Sequence[int]) -> str:
        """Bytes that are no character become replacements."""
        return b"".join(self.pieces[token] for token in tokens).decode("utf-8", "replace")

    @property
    def tokens(self) -> range:
        """The whole text's."""
        return range(len(self.pieces))


def fallback_encode(text: str) -> list[int]:
    """As sentencepiece does it: ASCII is a token (256 and more), everything else falls back to bytes."""
    text = " " + text
    return [token for char in text for token in ([256 + ord(char)] if char.isascii() else char.encode())]


def fallback_decode(tokens: Sequence[int]) -> str:
    """A run of byte tokens that is not all valid becomes as many replacements; the first space is not shown."""
    text, run = "", b""
    for token in [*tokens, 256]:
        if token < 256:
            run += bytes([token])
            continue
        try:
            text += run.decode()
        except UnicodeDecodeError:
            text += REPLACEMENT * len(run)
        text, run = text + chr(token - 256), b""
    return text[:-1].removeprefix(" ")


def cut(text: str, stops: Sequence[str]) -> str:
    """Up to the stop string that is complete first."""
    ends = [end for end in range(len(text) + 1) if any(text[:end].endswith(stop) for stop in stops)]
    if not ends:
        return text
    return text[: ends[0] - max(len(stop) for stop in stops if text[: ends[0]].endswith(stop))]


def stream_all(
    decode: Decode, tokens: Sequence[int], stops: Sequence[str] = (), before: Sequence[int] = ()
) -> tuple[list[str], bool]:
    """What is shown, piece by piece, and whether a stop string ended it."""
    stream, pieces = TextStream(decode, stops, before), []
    for token in tokens:
        pieces.append(stream.push(token))
        if stream.stopped:
            break
    return [*pieces, stream.finish()], stream.stopped


@given(texts, cuts, stop_strings)
def test_the_pieces_are_the_text(text: str, sizes: list[int], stops: list[str]) -> None:
    """However bytes are divided into tokens, the pieces are the text up to the first stop string, by whole characters."""
    toy = Pieces(text.encode(), sizes)
    pieces, stopped = stream_all(toy.decode, toy.tokens, stops)
    assert "".join(pieces) == cut(text, stops)
    assert stopped == any(stop in text for stop in stops)
    assert REPLACEMENT in text or not any(REPLACEMENT in piece for piece in pieces)


@given(st.binary(max_size=120), cuts)
def test_any_bytes_are_shown_as_they_decode(data: bytes, sizes: list[int]) -> None:
    """Also those that are no text."""
    toy = Pieces(data, sizes)
    pieces, _ = stream_all(toy.decode, toy.tokens)
    assert "".join(pieces) == toy.decode(toy.tokens)


@given(texts.filter(lambda text: REPLACEMENT not in text))
def test_byte_fallback(text: str) -> None:
    """A decoder that takes back a character while the bytes of the next are not complete, and hides the first space."""
    pieces, _ = stream_all(fallback_decode, fallback_encode(text))
    assert "".join(pieces) == text
    assert not any(REPLACEMENT in piece for piece in pieces)


@example("ࠀ𐀀𐀀", 2)  # a run of bytes that is longer than a character and the beginning of the next
@given(texts.filter(lambda text: REPLACEMENT not in text), st.integers(0, 60))
def test_a_text_goes_on_from_its_prompt(text: str, prompt_characters: int) -> None:
    """Prompt and reply together are the whole text, spaces at their border too, wherever the border is."""
    prompt_characters = min(prompt_characters, len(text))
    before = fallback_encode(text[:prompt_characters])
    pieces, _ = stream_all(fallback_decode, fallback_encode(text)[len(before) :], before=before)
    assert fallback_decode(before) + "".join(pieces) == text
    assert not any(REPLACEMENT in piece for piece in pieces)


@given(texts, cuts, st.integers(0, 30), stop_strings)
def test_a_prompt_may_end_inside_a_character(text: str, sizes: list[int], count: int, stops: list[str]) -> None:
    """The reply then begins with that character; the prompt's own text never ends it."""
    toy = Pieces(text.encode(), sizes)
    before = toy.tokens[:count]
    pieces, _ = stream_all(toy.decode, toy.tokens[count:], stops, before)
    given = b"".join(toy.pieces[token] for token in before).decode("utf-8", "ignore")
    expected = text[len(given) :] if toy.tokens[count:] else ""
    assert "".join(pieces) == cut(expected, stops)
