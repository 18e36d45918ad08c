"""Questions about the swarm; docs/wire.md has the fields."""

from __future__ import annotations

import msgspec
import pytest

from shoal.errors import ProtocolError
from shoal.protocol.messages import (
    DESCRIBE,
    DIRECTORY,
    EXCHANGE,
    MAX_WANT,
    STATUS,
    GetStatus,
    Ping,
    RecordBatch,
    Status,
    encode_message,
    only,
)


def test_what_is_asked_of_blocks_and_what_of_the_node() -> None:
    """A server that loads blocks exchanges records all the same."""
    assert (EXCHANGE.per_span, DESCRIBE.per_span, STATUS.per_span) == (False, True, True)


@pytest.mark.parametrize("want", [-1, MAX_WANT + 1, 1.5])
def test_how_many_records_may_be_wanted(want: float) -> None:
    """The payload is looked at afterwards."""
    with pytest.raises(ProtocolError, match="records message breaks its bounds"):
        DIRECTORY.decode(msgspec.msgpack.encode({"type": "records", "want": want}))
    assert DIRECTORY.decode(encode_message(RecordBatch(MAX_WANT))) == RecordBatch(MAX_WANT)


def test_the_load_of_an_older_server() -> None:
    """What it does not tell has a default; what every version tells has to be there."""
    told = {"sessions": 1, "max_sessions": 2, "queued_rows": 3, "free_tokens": 4, "total_tokens": 5}
    rates = {"decode_rows_per_s": 6.0, "prefill_rows_per_s": 7.0, "uptime_s": 8.0}
    header = {"type": "status", **told, **rates}
    assert only(Status).decode(msgspec.msgpack.encode(header)) == Status(1, 2, 3, 4, 5, 6.0, 7.0, 8.0, 0, True, 0)
    del header["uptime_s"]
    with pytest.raises(ProtocolError, match="uptime_s"):
        only(Status).decode(msgspec.msgpack.encode(header))


def test_a_question_about_the_swarm_is_not_one_about_a_session() -> None:
    """Each has its place."""
    assert DIRECTORY.decode(encode_message(GetStatus())) == GetStatus()
    with pytest.raises(ProtocolError, match="questions about the swarm"):
        DIRECTORY.decode(encode_message(Ping(1)))
