"""Messages that may come at a place, and those that may not leave this program."""

from __future__ import annotations

import msgspec
import pytest

from shoal.errors import InvalidMessage, ProtocolError, ShoalError, UnknownQuestion
from shoal.protocol.messages import (
    FIRST,
    GREETING,
    LINK,
    SESSION,
    Attached,
    GetStatus,
    HopTrace,
    LinkState,
    Message,
    Ping,
    Refusal,
    RowsFrame,
    Status,
    Vocabulary,
    encode_message,
    only,
)

ROWS = RowsFrame(0, 0, 1, 0)


@pytest.mark.parametrize(
    ("vocabulary", "message", "place"),
    [
        (SESSION, ROWS, "control channel"),
        (LINK, Ping(1), "a link"),
        (GREETING, GetStatus(), "private swarm"),
        (GREETING, Refusal("member", "no"), "private swarm"),
        (only(Attached), ROWS, "attached"),
    ],
)
def test_a_message_out_of_place(vocabulary: Vocabulary[Message], message: Message, place: str) -> None:
    """It is refused by decoding, and the error says where it has no place."""
    with pytest.raises(ProtocolError, match=place):
        vocabulary.decode(encode_message(message))


def test_a_question_that_this_version_does_not_know() -> None:
    """It has an error of its own, so that its asker learns that nothing else is wrong."""
    with pytest.raises(UnknownQuestion, match="usage"):
        FIRST.decode(msgspec.msgpack.encode({"type": "usage"}))
    with pytest.raises(UnknownQuestion):
        FIRST.decode(encode_message(Refusal("full", "no")))
    assert FIRST.decode(msgspec.msgpack.encode({"type": "get_status", "later": 1})) == GetStatus()


def test_a_long_type_is_cut() -> None:
    """What a stranger wrote is repeated in part only."""
    with pytest.raises(ProtocolError) as caught:
        SESSION.decode(msgspec.msgpack.encode({"type": "x" * 10_000}))
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("header", [b"", b"\xc1", b"\x80", b"\x91" * 60_000, b"\x81\xa4type\x03", b"\xa4ping"])
def test_what_is_no_message(header: bytes) -> None:
    """Bytes that name no type are the peer's mistake."""
    with pytest.raises(ProtocolError, match="not a message"):
        FIRST.decode(header)


def test_a_field_out_of_bounds() -> None:
    """The error names the message and the field."""
    with pytest.raises(ProtocolError, match=r"ping.*\$\.id"):
        SESSION.decode(msgspec.msgpack.encode({"type": "ping", "id": -1}))


NAN = float("nan")


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (Ping(-1), r"Ping.*id"),
        (Ping(1 << 70), "Ping"),
        (RowsFrame(0, 0, 0, 0), r"RowsFrame.*count"),
        (RowsFrame(0, 0, 1, 0, trace=(HopTrace(0.0, NAN, 0.0),)), r"RowsFrame.*trace"),
        (Status(0, 0, 0, 0, 0, float("inf"), 0.0, 0.0), r"Status.*decode_rows_per_s"),
        (LinkState(0, "ready", "x" * 513), r"LinkState.*detail"),
        (LinkState(0, "ready", "\udcff"), "LinkState"),
        (LinkState(0, "sideways"), r"LinkState.*state"),  # type: ignore[arg-type]
        (Refusal("full", "no", -1.0), r"Refusal.*retry_after"),
    ],
)
def test_a_mistake_of_this_program(message: Message, words: str) -> None:
    """A message with a field out of its bounds does not leave; the error names both, and is one of ours."""
    with pytest.raises(InvalidMessage, match=words) as caught:
        encode_message(message)
    assert isinstance(caught.value, ShoalError)
