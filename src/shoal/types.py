"""The nouns that every layer shares: frozen, with no behaviour beyond arithmetic."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Annotated, Literal, NewType

import msgspec
from msgspec import Meta

from shoal.errors import SpanError

PeerId = NewType("PeerId", str)
"""A node's ed25519 public key as 64 lower-case hexadecimal digits."""

PEER_ID_BYTES = 32

MAX_BLOCKS = 1024
"""Blocks of one model."""

MAX_HIDDEN_SIZE = 65_536

MAX_NAME_CHARS = 64
"""Of a server's name."""

MAX_MODEL_NAME_CHARS = 128
"""Of a model's name; `plain` cuts what is longer."""

MAX_FINGERPRINT_CHARS = 64

MAX_KL_NATS = 100
"""Of the KL divergence that a quantized model is said to have from its base."""

NO_CONTROLS = r"^[^\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff]*\Z"
"""Text that a terminal shows as it is: no control characters, no line breaks, nothing that turns the direction of writing, and
no space that cannot be seen. What joins letters, or keeps them apart, is a part of words."""

PRINTABLE_ASCII = r"^[\x20-\x7e]*\Z"

KvDtype = Literal["float32", "bfloat16", "float16", "int8", "int4"]
"""How the cache keeps keys and values."""

Block = Annotated[int, Meta(ge=0, le=MAX_BLOCKS)]
Name = Annotated[str, Meta(max_length=MAX_NAME_CHARS, pattern=NO_CONTROLS)]


def is_plain(text: str) -> bool:
    """Whether a terminal shows this text as it is, on one line."""
    return re.search(NO_CONTROLS, text) is not None


def plain(text: str, max_chars: int) -> str:
    """The first `max_chars` characters, with a question mark for each that is a control character or no character."""
    known = text.encode("utf-8", "replace").decode()
    return "".join(one if is_plain(one) else "?" for one in known[:max_chars])


def peer_id(public_key: bytes) -> PeerId:
    """The id of the node with this raw ed25519 public key (32 bytes).

    Raises ValueError for any other length.
    """
    if len(public_key) != PEER_ID_BYTES:
        raise ValueError(f"an ed25519 public key has {PEER_ID_BYTES} bytes, not {len(public_key)}")
    return PeerId(public_key.hex())


class Span(msgspec.Struct, frozen=True, order=True, array_like=True):
    """A half-open range of transformer blocks."""

    start: Block
    stop: Block

    def __len__(self) -> int:
        return self.stop - self.start

    def __str__(self) -> str:
        return f"{self.start}:{self.stop}"

    def __contains__(self, block: int) -> bool:
        return self.start <= block < self.stop

    def covers(self, other: Span) -> bool:
        """Whether every block of `other` is in this span."""
        return self.start <= other.start and other.stop <= self.stop

    def blocks(self) -> range:
        """The blocks in order."""
        return range(self.start, self.stop)

    def check(self, num_blocks: int) -> Span:
        """This span, if it is a non-empty part of a model of `num_blocks`; raises SpanError."""
        if not 0 <= self.start < self.stop <= num_blocks:
            raise SpanError(f"span {self} is not within the model's blocks 0:{num_blocks}")
        return self

    @classmethod
    def of(cls, given: SpanLike) -> Span:
        """A span as people write it: "10:20", (10, 20), range(10, 20); raises SpanError for anything else."""
        if isinstance(given, str):
            return cls.parse(given)
        if isinstance(given, Span):
            return given
        if isinstance(given, range | slice):
            pair: Sequence[object] = (given.start, given.stop) if given.step in (None, 1) else ()
        else:
            pair = given if isinstance(given, list | tuple) else ()
        if len(pair) != 2 or not all(isinstance(one, int) and not isinstance(one, bool) for one in pair):
            raise SpanError(f"a span is written START:STOP or (START, STOP), not {given!r}")
        start, stop = pair
        assert isinstance(start, int)
        assert isinstance(stop, int)
        if not 0 <= start < stop:
            raise SpanError(f"a span is written (START, STOP) with START < STOP, not {given!r}")
        return cls(start, stop)

    @classmethod
    def parse(cls, text: str) -> Span:
        """`"10:20"` → Span(10, 20); raises SpanError for anything else."""
        start, colon, stop = text.partition(":")
        if not (colon and start.isdecimal() and stop.isdecimal() and int(start) < int(stop)):
            raise SpanError(f"a span is written START:STOP with START < STOP, not {text!r}")
        return cls(int(start), int(stop))


SpanLike = Span | str | tuple[int, int] | list[int] | range | slice
"""What callers may write for a span; `Span.of` takes it."""


def missing_spans(wanted: Span, held: Iterable[Span]) -> tuple[Span, ...]:
    """The parts of `wanted` that no span of `held` covers, in order."""
    missing, covered = [], wanted.start
    for span in sorted(held):
        if span.start > covered:
            missing.append(Span(covered, min(span.start, wanted.stop)))
        covered = max(covered, span.stop)
        if covered >= wanted.stop:
            return tuple(missing)
    return (*missing, Span(covered, wanted.stop))


class Hop(msgspec.Struct, frozen=True):
    """A span on a peer."""

    peer: PeerId
    span: Span


Route = tuple[Hop, ...]
"""Hops that follow one another and together cover the model."""


class ModelSpec(msgspec.Struct, frozen=True):
    """What identifies a model in the swarm: the base checkpoint's name, fingerprint and shape."""

    name: Annotated[str, Meta(max_length=MAX_MODEL_NAME_CHARS, pattern=NO_CONTROLS)]
    fingerprint: Annotated[str, Meta(max_length=MAX_FINGERPRINT_CHARS, pattern=PRINTABLE_ASCII)]
    num_blocks: Annotated[int, Meta(ge=1, le=MAX_BLOCKS)]
    hidden_size: Annotated[int, Meta(ge=1, le=MAX_HIDDEN_SIZE)]

    @property
    def checkpoint(self) -> tuple[str, int, int]:
        """What two descriptions of one checkpoint have in common: all but the name, which is whatever somebody calls it."""
        return self.fingerprint, self.num_blocks, self.hidden_size
