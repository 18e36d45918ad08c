"""What a client and one hop say to each other: the session's control channel, and what opens it."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

import msgspec
from msgspec import Meta

from shoal.errors import SpanError
from shoal.protocol.messages.field_types import (
    MAX_BLOCKS,
    MAX_POSITION,
    AcceptanceBytes,
    Counter,
    Moment,
    Peer,
    Position,
    RecordBytes,
    RowCodec,
    Seconds,
    Secret,
    Text,
    WeightDigest,
)
from shoal.protocol.messages.message import Message, Question, Refusal, Vocabulary
from shoal.types import Span


class LinkGrant(msgspec.Struct, frozen=True):
    """Who may be at the other end of a link."""

    generation: Counter
    peer: Peer
    token: Secret


class Numerics(msgspec.Struct, frozen=True):
    """What must match for equal bits."""

    kernel: Text
    probe: Text
    kv_dtype: Text
    row_codec: RowCodec = "fp32"
    exact: bool = True

    @property
    def key(self) -> str:
        """The same as one short string, for records."""
        return f"{self.kernel}/{self.kv_dtype}/{self.probe[:16]}"


class Open(Message, frozen=True, tag="open"):
    """Asks a server to hold `span` for a session; `follow` if it shall only stand by for now."""

    session: Secret
    incarnation: Counter
    secret: Secret
    fingerprint: Text
    span: Span
    max_tokens: Annotated[int, Meta(ge=1, le=MAX_POSITION)]
    upstream: LinkGrant
    lease_s: Seconds = 30.0
    row_codec: RowCodec = "fp32"
    follow: bool = False

    def __post_init__(self) -> None:
        if self.span.start > self.span.stop:
            raise SpanError(f"span {self.span} ends before it starts")


class Opened(Message, frozen=True, tag="opened"):
    """What was granted, and the state of the session at this hop; `weights` has a digest for each block of the span."""

    max_tokens: Position
    lease_s: Seconds
    epoch: Counter
    position: Position
    journal_tokens: Position
    numerics: Numerics
    acceptance: AcceptanceBytes
    weights: Annotated[tuple[WeightDigest, ...], Meta(max_length=MAX_BLOCKS)] = ()


class Redirect(Message, frozen=True, tag="redirect"):
    """Where this hop's output goes; record and acceptance are empty when it is the client.

    `elide`: leave out the rows that the client does not need. `follow`: this link is beside the one to the next hop.
    """

    link: LinkGrant
    record: RecordBytes = b""
    acceptance: AcceptanceBytes = b""
    elide: bool = False
    follow: bool = False


class Admit(Message, frozen=True, tag="admit"):
    """Who feeds this hop from now on; `follow` if it only stands by, and drops its link to the next hop."""

    link: LinkGrant
    follow: bool = False


class Admitted(Message, frozen=True, tag="admitted"):
    """The acceptance for a new upstream."""

    generation: Counter
    acceptance: AcceptanceBytes


class Rewind(Message, frozen=True, tag="rewind"):
    """Truncate to `position`, the least base of all rewinds after epoch `since`."""

    epoch: Counter
    position: Position
    since: Counter


class Ping(Message, frozen=True, tag="ping"):
    """Renews the lease."""

    id: Counter


class Pong(Message, frozen=True, tag="pong"):
    """Times are the server's wall clock in seconds.

    As of `epoch`, this hop has received the rows below `position` and computed those below `computed`; `steps` counts what its
    compute thread has done for anybody, in about `step_s` seconds each.
    """

    id: Counter
    received_at: Moment
    sent_at: Moment
    epoch: Counter = 0
    position: Position = 0
    computed: Position = 0
    steps: Counter = 0
    step_s: Seconds = 0.0


class LinkState(Message, frozen=True, tag="link"):
    """News of this hop's outgoing link."""

    generation: Counter
    state: Literal["ready", "up", "down", "gone"]
    detail: Text = ""
    position: Position = 0


class Leaving(Message, frozen=True, tag="leaving"):
    """This server will leave, in `deadline_s` seconds at the latest: sessions should move. Also the answer to `leave`.

    `called_off`: it stays after all.
    """

    deadline_s: Seconds
    called_off: bool = False


class Leave(Message, frozen=True, tag="leave"):
    """Orders a server to drain and leave; only from its own node key."""


class Close(Message, frozen=True, tag="close"):
    """The session ends."""


class Attach(Message, frozen=True, tag="attach"):
    """Takes up a session's control channel, or one end of a link.

    `epoch` is the last that a client on a control channel, or a receiver, knows. `incarnation` is the client's and counts on a
    control channel; links have their generation.
    """

    role: Literal["control", "send", "receive"]
    session: Secret
    incarnation: Counter
    token: Secret
    generation: Counter = 0
    epoch: Counter = 0
    position: Position = 0


class Attached(Message, frozen=True, tag="attached"):
    """The state of the session at this hop; rows below `base` were there before the epoch that the client named."""

    epoch: Counter
    position: Position
    base: Position = MAX_POSITION


OPEN = Question(Open, Opened, per_span=True)
ATTACH = Question(Attach, Attached, per_span=True)
"""Of a control channel; one that attaches to a link speaks as a link from there on."""
LEAVE = Question(Leave, Leaving, per_span=False)

Order = Redirect | Admit | Rewind | Ping | Close
News = Admitted | Pong | LinkState | Leaving

SessionMessage = Open | Opened | Attach | Attached | Order | News | Leave | Refusal

SESSION: Vocabulary[Order | News | Refusal] = Vocabulary("a control channel", get_args(Order | News | Refusal))
"""A control channel once it is open, in either direction."""
SESSION_TYPES: tuple[type[Message], ...] = get_args(SessionMessage)
SESSION_QUESTIONS = (OPEN, ATTACH, LEAVE)
