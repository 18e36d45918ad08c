"""What comes first in a private swarm; docs/wire.md has the fields."""

from __future__ import annotations

import pytest

from shoal.errors import InvalidMessage, ProtocolError
from shoal.protocol.messages import (
    FIRST,
    GREETING,
    MAX_CERTIFICATE_BYTES,
    MAX_INVITE_BYTES,
    MEMBERSHIP,
    REDEEM,
    RENEW,
    Certified,
    GetStatus,
    MemberHello,
    Message,
    Redeem,
    Renew,
    Revoked,
    encode_message,
)
from shoal.swarm.membership.member_transport import MAX_GREETING_BYTES

LARGEST = [
    MemberHello(b"c" * MAX_CERTIFICATE_BYTES, 1 << 48, True, True),
    Redeem(b"i" * MAX_INVITE_BYTES),
    Renew(b"c" * MAX_CERTIFICATE_BYTES),
]


@pytest.mark.parametrize("message", LARGEST, ids=lambda one: type(one).__name__)
def test_a_greeting_fits_what_is_read_of_a_stranger(message: Message) -> None:
    """The largest one does."""
    header = encode_message(message)
    assert len(header) <= MAX_GREETING_BYTES
    assert GREETING.decode(header) == message


@pytest.mark.parametrize(
    "message",
    [MemberHello(b"c" * (MAX_CERTIFICATE_BYTES + 1)), MemberHello(b"", -1), Redeem(b"i" * (MAX_INVITE_BYTES + 1))],
)
def test_greetings_that_may_not_leave(message: Message) -> None:
    """The message is named."""
    with pytest.raises(InvalidMessage, match=type(message).__name__):
        encode_message(message)


@pytest.mark.parametrize("message", [Revoked(), Certified(b"c"), GetStatus()])
def test_what_a_stranger_may_not_begin_with(message: Message) -> None:
    """Answers, news, and every question of the swarm itself."""
    with pytest.raises(ProtocolError, match="private swarm"):
        GREETING.decode(encode_message(message))


def test_the_gate_knows_more_than_how_it_begins() -> None:
    """Answers and news follow a greeting; no other channel begins with one."""
    for message in (*LARGEST, Revoked(), Certified(b"c")):
        assert MEMBERSHIP.decode(encode_message(message)) == message
        assert type(message) not in FIRST.types
    assert (REDEEM.answer, RENEW.answer) == (Certified, Certified)
