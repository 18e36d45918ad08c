"""The codes of refusals."""

from __future__ import annotations

import pytest

from shoal import errors
from shoal.protocol.messages import MAX_TEXT_CHARS, Refusal, encode_message, only
from shoal.protocol.refusals import CODES, FAILED, RefusalCode, refusal, refused
from shoal.types import PeerId

PEER = PeerId("ab" * 32)


@pytest.mark.parametrize("row", CODES, ids=lambda row: row.code)
def test_an_error_comes_out_as_its_other_side(row: RefusalCode) -> None:
    """Every row of the table holds there and back, kinds of kinds included."""
    told = only(Refusal).decode(encode_message(refusal(row.raised("no such thing"))))
    assert told.code == row.code
    error = refused(told, PEER)
    assert type(error) is row.received
    assert str(error) == f"peer {PEER[:8]}: no such thing"


def test_codes_are_told_apart() -> None:
    """No code stands twice."""
    assert len({row.code for row in CODES} | {FAILED}) == len(CODES) + 1


def test_a_full_server_says_when_to_come_back() -> None:
    """The time goes along, within the wire's bounds."""
    for wait_s, told_s in ((7.5, 7.5), (-1.0, 0.0), (1e9, 86_400)):
        error = refused(refusal(errors.ServerFull("full", retry_after=wait_s)), PEER)
        assert isinstance(error, errors.ServerFull)
        assert error.retry_after == told_s


def test_what_has_no_code_of_its_own() -> None:
    """It is the refusing side's own fault; and so is what a later version may say."""
    assert refusal(errors.CheckpointError("no")).code == FAILED
    for code in (FAILED, "of a later version"):
        assert type(refused(Refusal(code, "no"), PEER)) is errors.Refused


def test_any_text_can_be_told() -> None:
    """Errors name paths, which may be long and need not be text."""
    told = refusal(errors.UsageError("\udcff" * 2 * MAX_TEXT_CHARS))
    assert only(Refusal).decode(encode_message(told)) == told
