"""What travels on a link, from one party of a session's row stream to the next."""

from __future__ import annotations

from typing import Annotated, ClassVar, get_args

import msgspec
from msgspec import Meta

from shoal.protocol.frames import MAX_PAYLOAD_BYTES
from shoal.protocol.messages.field_types import MAX_HOPS, MAX_ROWS, Count, Counter, Elapsed, Moment, Position
from shoal.protocol.messages.message import Message, Refusal, Vocabulary


class ReceivedUpTo(Message, frozen=True, tag="have"):
    """The receiver has all rows below `position` as of `epoch`."""

    epoch: Counter
    position: Position


class ResumeFrom(Message, frozen=True, tag="from"):
    """The sender goes on from here."""

    epoch: Counter
    position: Position


class HopTrace(msgspec.Struct, frozen=True, array_like=True):
    """One hop's times for a frame: its own wall clock, then durations in seconds."""

    received_at: Moment
    queue_s: Elapsed
    compute_s: Elapsed
    batch_sessions: Counter = 1
    batch_rows: Counter = 1


class RowsFrame(Message, frozen=True, tag="rows"):
    """`count` rows from `position`; the first `elided` of them are not in the payload."""

    max_payload_bytes: ClassVar[int] = MAX_PAYLOAD_BYTES
    epoch: Counter
    position: Position
    count: Count
    after: Counter
    reply: Annotated[int, Meta(ge=-1, le=MAX_ROWS)] = -1
    elided: Annotated[int, Meta(ge=0, le=MAX_ROWS)] = 0
    trace: Annotated[tuple[HopTrace, ...], Meta(max_length=MAX_HOPS)] = ()

    @property
    def needed_from(self) -> int:
        """The first position that the client needs an output of (docs/wire.md, `rows.reply`)."""
        return self.position if self.reply < 0 else self.position + self.count - self.reply


LinkMessage = ReceivedUpTo | ResumeFrom | RowsFrame | Refusal

LINK: Vocabulary[LinkMessage] = Vocabulary("a link", get_args(LinkMessage))
