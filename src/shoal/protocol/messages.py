"""One struct per message of docs/wire.md, and their codec."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from shoal.errors import ProtocolError
from shoal.types import Span

MAX_ROWS = 4096
MAX_HIDDEN_SIZE = 65_536
MAX_POSITION = 1 << 24
MAX_HOPS = 128
MAX_BLOCKS = 1024
MAX_TEXT_CHARS = 512
MAX_CONFIG_BYTES = 1 << 20
SECRET_BYTES = 16
MAX_CERTIFICATE_BYTES = 1024
MAX_REVOCATIONS_BYTES = 400_000

Text = Annotated[str, Meta(max_length=MAX_TEXT_CHARS)]
Peer = Annotated[str, Meta(pattern="^[0-9a-f]{64}$", max_length=64)]  # `$` alone lets a newline follow
Secret = Annotated[bytes, Meta(min_length=SECRET_BYTES, max_length=SECRET_BYTES)]
Position = Annotated[int, Meta(ge=0, le=MAX_POSITION)]
Counter = Annotated[int, Meta(ge=0, le=1 << 48)]
Count = Annotated[int, Meta(ge=1, le=MAX_ROWS)]
Seconds = Annotated[float, Meta(ge=0, le=86_400)]
Signed = Annotated[bytes, Meta(max_length=1024)]
RowCodec = Literal["fp32", "fp16", "bf16"]
Code = Literal[
    "protocol",
    "session",
    "fenced",
    "token",
    "model",
    "span",
    "grant",
    "full",
    "record",
    "unsupported",
    "member",
    "failed",
]


class Message(msgspec.Struct, frozen=True, tag_field="type", omit_defaults=True):
    """Base of every message; the subclass's tag is its `type` on the wire."""


class Refusal(Message, frozen=True, tag="refused"):
    """No, and why."""

    code: Code
    message: Text
    retry_after: Seconds = 0.0


class MemberHello(Message, frozen=True, tag="present"):
    """The first message of either side in a private swarm: who this is, and the number of its revocation list.

    `news`: a `revoked` message follows. `renews`: certificates can be renewed here.
    """

    certificate: Annotated[bytes, Meta(max_length=MAX_CERTIFICATE_BYTES)]
    number: Counter = 0
    news: bool = False
    renews: bool = False


class Revoked(Message, frozen=True, tag="revoked"):
    """Payload: a signed revocation list."""


class Redeem(Message, frozen=True, tag="redeem"):
    """Asks a redeemer for a first certificate."""

    invite: Annotated[bytes, Meta(max_length=2048)]


class Renew(Message, frozen=True, tag="renew"):
    """Asks a redeemer for the next certificate."""

    certificate: Annotated[bytes, Meta(max_length=MAX_CERTIFICATE_BYTES)]


class Certified(Message, frozen=True, tag="certified"):
    """A certificate for the node that asked. Payload: the redeemer's revocation list, if it has one."""

    certificate: Annotated[bytes, Meta(max_length=MAX_CERTIFICATE_BYTES)]


class RecordDigest(Message, frozen=True, tag="digest"):
    """Opens a record exchange; the payload lists (node id, sequence) of the records held."""


class RecordBatch(Message, frozen=True, tag="records"):
    """Payload: `want` node ids, then length-prefixed signed records."""

    want: Annotated[int, Meta(ge=0, le=4096)] = 0


class Describe(Message, frozen=True, tag="describe"):
    """Asks for a model's configuration and where its tokenizer comes from."""

    fingerprint: Text


class Description(Message, frozen=True, tag="description"):
    """Payload: the checkpoint's configuration as JSON text."""

    name: Text
    fingerprint: Text
    source: Text
    revision: Text = ""


class GetStatus(Message, frozen=True, tag="get_status"):
    """Asks for the server's load."""


class Status(Message, frozen=True, tag="status"):
    """A server's load now; rates are rows per second through its whole span, 0 when not yet measured.

    `prefix_rows` were found in its prefix cache and not computed, since it started.
    """

    sessions: Counter
    max_sessions: Counter
    queued_rows: Counter
    free_tokens: Counter
    total_tokens: Counter
    decode_rows_per_s: float
    prefill_rows_per_s: float
    uptime_s: float
    max_batch_sessions: Counter = 0
    exact: bool = True
    prefix_rows: Counter = 0


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


class Opened(Message, frozen=True, tag="opened"):
    """What was granted, and the state of the session at this hop; `weights` has a digest for each block of the span."""

    max_tokens: Position
    lease_s: Seconds
    epoch: Counter
    position: Position
    journal_tokens: Position
    numerics: Numerics
    acceptance: Signed
    weights: Annotated[tuple[Annotated[str, Meta(max_length=32)], ...], Meta(max_length=MAX_BLOCKS)] = ()


class Redirect(Message, frozen=True, tag="redirect"):
    """Where this hop's output goes; record and acceptance are empty when it is the client.

    `elide`: leave out the rows that the client does not need. `follow`: this link is beside the one to the next hop.
    """

    link: LinkGrant
    record: Signed = b""
    acceptance: Signed = b""
    elide: bool = False
    follow: bool = False


class Admit(Message, frozen=True, tag="admit"):
    """Who feeds this hop from now on; `follow` if it only stands by, and drops its link to the next hop."""

    link: LinkGrant
    follow: bool = False


class Admitted(Message, frozen=True, tag="admitted"):
    """The acceptance for a new upstream."""

    generation: Counter
    acceptance: Signed


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
    received_at: float
    sent_at: float
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

    received_at: float
    queue_s: float
    compute_s: float
    batch_sessions: int = 1
    batch_rows: int = 1


class RowsFrame(Message, frozen=True, tag="rows"):
    """`count` rows from `position`; the first `elided` of them are not in the payload."""

    epoch: Counter
    position: Position
    count: Count
    after: Counter
    reply: Annotated[int, Meta(ge=-1, le=MAX_ROWS)] = -1
    elided: Annotated[int, Meta(ge=0, le=MAX_ROWS)] = 0
    trace: Annotated[tuple[HopTrace, ...], Meta(max_length=MAX_HOPS)] = ()


AnyMessage = (
    Refusal
    | MemberHello
    | Revoked
    | Redeem
    | Renew
    | Certified
    | RecordDigest
    | RecordBatch
    | Describe
    | Description
    | GetStatus
    | Status
    | Open
    | Opened
    | Redirect
    | Admit
    | Admitted
    | Rewind
    | Ping
    | Pong
    | LinkState
    | Leave
    | Leaving
    | Close
    | Attach
    | Attached
    | ReceivedUpTo
    | ResumeFrom
    | RowsFrame
)

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[AnyMessage] = msgspec.msgpack.Decoder(AnyMessage)


def encode_message(message: AnyMessage) -> bytes:
    """The message as a frame's header."""
    return _encoder.encode(message)


def decode_message(header: bytes) -> AnyMessage:
    """The message in a frame's header; raises ProtocolError for anything that is not exactly one."""
    try:
        return _decoder.decode(header)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"a header is not a message of this version: {error}") from error
