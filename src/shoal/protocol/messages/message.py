"""What every message is, what may come at one place, and what a question is."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable
from typing import Any, ClassVar, Generic, TypeVar

import msgspec

from shoal.errors import InvalidMessage, PeerError, ProtocolError
from shoal.protocol.messages.field_types import Code, Seconds, Text


class Message(msgspec.Struct, frozen=True, tag_field="type", omit_defaults=True):
    """Base of every message; the subclass's tag is its `type` on the wire.

    `max_payload_bytes` bounds what may follow its header in a frame: nothing, unless a message says otherwise.
    """

    max_payload_bytes: ClassVar[int] = 0


class Refusal(Message, frozen=True, tag="refused"):
    """No, and why; `code` is one of shoal.protocol.refusals, or one of a later version."""

    code: Code
    message: Text
    retry_after: Seconds = 0.0


M = TypeVar("M", bound=Message)
Q = TypeVar("Q", bound=Message)
A = TypeVar("A", bound=Message)


class _Tagged(msgspec.Struct):
    """What can be read of any message."""

    type: str


_encoder = msgspec.msgpack.Encoder()
_any_decoder = msgspec.msgpack.Decoder(_Tagged)


class Vocabulary(Generic[M]):
    """The messages that may come at one place."""

    def __init__(self, place: str, types: Iterable[type[Message]], unknown: type[PeerError] = ProtocolError) -> None:
        """`place` completes "… has no place in" in errors; `unknown` is raised for a type that is not one of `types`."""
        self.types: tuple[type[Message], ...] = tuple(types)
        self._place = place
        self._unknown = unknown
        self._tags = {tag(kind) for kind in self.types}
        self._decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(
            functools.reduce(operator.or_, self.types)
        )

    def decode(self, header: bytes) -> M:
        """The message in a frame's header.

        Raises ProtocolError for bytes that are not exactly one of these messages within its bounds, `unknown` for a message
        of another type.
        """
        try:
            message: M = self._decoder.decode(header)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise self._fault(header, error) from error
        return message

    def max_payload_bytes(self, header: bytes) -> int:
        """How much may follow this header; raises what `decode` raises."""
        return type(self.decode(header)).max_payload_bytes

    def _fault(self, header: bytes, error: Exception) -> PeerError:
        try:
            kind = _any_decoder.decode(header).type
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return ProtocolError(f"a header is not a message of this version: {error}")
        if kind in self._tags:
            return ProtocolError(f"a {kind} message breaks its bounds: {error}")
        return self._unknown(f"a {kind[:MAX_KIND_CHARS]!r} message has no place in {self._place}")


MAX_KIND_CHARS = 32
"""How much of an unknown type is repeated in an error."""


class Question(Generic[Q, A]):
    """A first message and its answer.

    `per_span`: it is asked of the blocks that a server holds, and refused while it loads; otherwise of the node itself.
    """

    def __init__(self, request: type[Q], answer: type[A], *, per_span: bool) -> None:
        self.request = request
        self.answer = answer
        self.per_span = per_span


def tag(kind: type[Message]) -> str:
    """A message's `type` on the wire."""
    return str(kind.__struct_config__.tag)


@functools.cache
def only(kind: type[M]) -> Vocabulary[M | Refusal]:
    """The place where one kind of message is awaited."""
    return Vocabulary(f"an exchange that waits for {tag(kind)!r}", (kind, Refusal))


@functools.cache
def _bounds(kind: type[Message]) -> msgspec.msgpack.Decoder[Any]:
    return msgspec.msgpack.Decoder(kind)


def encode_message(message: Message) -> bytes:
    """The message as a frame's header; raises InvalidMessage when a field is out of its bounds."""
    try:
        header = _encoder.encode(message)
        _bounds(type(message)).decode(header)
    except (msgspec.DecodeError, TypeError, ValueError, OverflowError) as error:
        raise InvalidMessage(f"{type(message).__name__}: {error}") from error
    return header
