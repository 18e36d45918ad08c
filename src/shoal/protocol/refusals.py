"""The codes of refusals, and the errors that they stand for on either side."""

from __future__ import annotations

from typing import NamedTuple

from shoal import errors
from shoal.protocol.messages.field_types import MAX_SECONDS, MAX_TEXT_CHARS
from shoal.protocol.messages.message import Refusal
from shoal.types import PeerId


class RefusalCode(NamedTuple):
    """`raised` at the one who refuses travels as `code` and is `received` at the other."""

    code: str
    raised: type[errors.ShoalError]
    received: type[errors.ShoalError]


FAILED = "failed"
"""The code for everything else: it is the refusing side's own fault."""

CODES = (
    RefusalCode("protocol", errors.ProtocolError, errors.ProtocolError),
    RefusalCode("unknown", errors.UnknownQuestion, errors.UnknownQuestion),
    RefusalCode("fenced", errors.SessionFenced, errors.SessionFenced),  # before the error that it is a kind of
    RefusalCode("session", errors.SessionLost, errors.SessionLost),
    RefusalCode("busy", errors.SessionBusy, errors.SessionBusy),
    RefusalCode("model", errors.FingerprintMismatch, errors.FingerprintMismatch),
    RefusalCode("span", errors.SpanError, errors.NotHeld),
    RefusalCode("grant", errors.GrantExceeded, errors.GrantExceeded),
    RefusalCode("full", errors.ServerFull, errors.ServerFull),
    RefusalCode("record", errors.RecordError, errors.RecordError),
    RefusalCode("token", errors.IdentityError, errors.Refused),
    RefusalCode("unsupported", errors.UnsupportedModel, errors.Refused),
    RefusalCode("member", errors.NotAMember, errors.NotAMember),
)

_RECEIVED = {row.code: row.received for row in CODES}


def refusal(error: errors.ShoalError) -> Refusal:
    """The message that tells a peer of an error."""
    code = next((row.code for row in CODES if isinstance(error, row.raised)), FAILED)
    retry_after = error.retry_after if isinstance(error, errors.ServerFull) else 0.0
    text = str(error)[:MAX_TEXT_CHARS].encode("utf-8", "replace").decode()  # a path may hold what is no text
    return Refusal(code, text, min(max(0.0, retry_after), MAX_SECONDS))


def refused(message: Refusal, peer: PeerId) -> errors.ShoalError:
    """The error that a refusal stands for on the side that receives it; Refused for a code of a later version."""
    text = f"peer {peer[:8]}: {message.message}"
    if message.code == "full":
        return errors.ServerFull(text, message.retry_after)
    return _RECEIVED.get(message.code, errors.Refused)(text)
