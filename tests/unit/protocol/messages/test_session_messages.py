"""What a client and a hop say to each other; docs/wire.md has the fields."""

from __future__ import annotations

import msgspec
import pytest

from shoal.errors import InvalidMessage, ProtocolError, SpanError
from shoal.protocol.messages import (
    ATTACH,
    FIRST,
    LEAVE,
    MAX_BLOCKS,
    MAX_POSITION,
    OPEN,
    SESSION,
    Admit,
    Attach,
    Attached,
    LinkGrant,
    Message,
    Numerics,
    Open,
    Opened,
    Redirect,
    encode_message,
    only,
)
from shoal.types import Span

FOUR = Span(0, 4)
GRANT = LinkGrant(1, "ab" * 32, b"t" * 16)


def opening(span: Span = FOUR, **changes: object) -> Open:
    """A sound request, with changes."""
    return msgspec.structs.replace(Open(b"s" * 16, 0, b"k" * 16, "f", span, 16, GRANT), **changes)


def test_a_span_that_ends_before_it_starts() -> None:
    """No such request can be made, and none can be received."""
    with pytest.raises(SpanError):
        opening(Span(4, 2))
    fields = msgspec.msgpack.decode(encode_message(opening()))
    with pytest.raises(ProtocolError):
        FIRST.decode(msgspec.msgpack.encode({**fields, "span": [4, 2]}))


@pytest.mark.parametrize(
    "changes",
    [
        {"max_tokens": 0},
        {"max_tokens": MAX_POSITION + 1},
        {"session": b"s" * 15},
        {"lease_s": float("nan")},
        {"row_codec": "int8"},
        {"upstream": LinkGrant(1, "ab" * 31, b"t" * 16)},
        {"upstream": LinkGrant(-1, "ab" * 32, b"t" * 16)},
        {"span": Span(0, MAX_BLOCKS + 1)},
    ],
)
def test_requests_that_may_not_leave(changes: dict[str, object]) -> None:
    """Their field is named."""
    with pytest.raises(InvalidMessage, match=next(iter(changes))):
        encode_message(opening(**changes))


def test_numerics_as_one_string() -> None:
    """Servers whose strings are equal give equal bits; the codec of rows does not belong to it."""
    numerics = Numerics("torch", "0123456789abcdef" * 2, "float32")
    assert numerics.key == "torch/float32/0123456789abcdef"
    assert msgspec.structs.replace(numerics, row_codec="bf16", exact=False).key == numerics.key


def test_an_old_server_has_no_base() -> None:
    """A client then takes every row for older than the epoch that it named."""
    header = msgspec.msgpack.encode({"type": "attached", "epoch": 2, "position": 7})
    assert only(Attached).decode(header) == Attached(2, 7, MAX_POSITION)


def test_a_granted_session_has_a_digest_for_no_more_blocks_than_models_have() -> None:
    """One more is refused before it is sent."""
    most = Opened(1, 1.0, 0, 0, 0, Numerics("k", "p", "float32"), b"", ("d",) * MAX_BLOCKS)
    assert only(Opened).decode(encode_message(most)) == most
    with pytest.raises(InvalidMessage, match="weights"):
        encode_message(msgspec.structs.replace(most, weights=(*most.weights, "d")))


@pytest.mark.parametrize("message", [opening(), Attach("control", b"s" * 16, 0, b"t" * 16)])
def test_what_opens_a_channel_does_not_come_on_it_later(message: Message) -> None:
    """Orders do."""
    with pytest.raises(ProtocolError, match="control channel"):
        SESSION.decode(encode_message(message))
    for order in (Redirect(GRANT), Admit(GRANT, follow=True)):
        assert SESSION.decode(encode_message(order)) == order


def test_what_is_asked_of_blocks_and_what_of_the_node() -> None:
    """A server that loads blocks can be ordered to leave, and opens no session."""
    assert (OPEN.per_span, ATTACH.per_span, LEAVE.per_span) == (True, True, False)
