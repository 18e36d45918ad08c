"""What travels on a link; docs/wire.md has the fields."""

from __future__ import annotations

import msgspec
import pytest

from shoal.errors import InvalidMessage, ProtocolError
from shoal.protocol.messages import (
    LINK,
    MAX_HOPS,
    MAX_POSITION,
    MAX_ROWS,
    HopTrace,
    ReceivedUpTo,
    ResumeFrom,
    RowsFrame,
    encode_message,
)


def test_short_frames_are_short() -> None:
    """A frame of one row has a header of 49 bytes at most: fields at their defaults, and names in traces, are left out."""
    assert len(encode_message(RowsFrame(0, 1000, 1, 0))) <= 49
    traced = RowsFrame(0, 1000, 1, 0, trace=(HopTrace(1.0, 0.5, 0.25, 2, 3),))
    assert msgspec.msgpack.decode(encode_message(traced))["trace"] == [[1.0, 0.5, 0.25, 2, 3]]


def test_a_trace_of_an_older_version() -> None:
    """Hops that do not tell their batches computed one row of one session."""
    fields = msgspec.msgpack.decode(encode_message(RowsFrame(0, 0, 1, 0)))
    frame = LINK.decode(msgspec.msgpack.encode({**fields, "trace": [[1.0, 0.0, 0.0]]}))
    assert frame == RowsFrame(0, 0, 1, 0, trace=(HopTrace(1.0, 0.0, 0.0, 1, 1),))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"count": 0}, "count"),
        ({"count": MAX_ROWS + 1}, "count"),
        ({"position": MAX_POSITION + 1}, "position"),
        ({"reply": -2}, "reply"),
        ({"elided": -1}, "elided"),
        ({"trace": (HopTrace(0.0, 0.0, 0.0),) * (MAX_HOPS + 1)}, "trace"),
        ({"trace": (HopTrace(0.0, -1.0, 0.0),)}, "trace"),
    ],
)
def test_frames_that_may_not_leave(changes: dict[str, object], field: str) -> None:
    """The field is named."""
    with pytest.raises(InvalidMessage, match=field):
        encode_message(msgspec.structs.replace(RowsFrame(0, 0, 1, 0), **changes))


def test_both_ways_of_a_link() -> None:
    """What has come, and from where the sender goes on, are told apart though their fields are the same."""
    for message in (ReceivedUpTo(1, 2), ResumeFrom(1, 2)):
        assert LINK.decode(encode_message(message)) == message
    with pytest.raises(ProtocolError, match="position"):
        LINK.decode(msgspec.msgpack.encode({"type": "from", "epoch": 1, "position": -1}))
