"""What servers sign: their record in the swarm, and acceptances of a session's link."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from shoal.errors import RecordError
from shoal.protocol.messages import MAX_RECORD_BYTES as MAX_RECORD_BYTES
from shoal.protocol.messages import Counter, Peer, Secret, Text
from shoal.swarm.identity import SIGNATURE_BYTES, Identity, verify
from shoal.types import ModelSpec, PeerId, Span

MAX_ADDRESSES = 8
MAX_ROUND_TRIPS = 4
MAX_DISK_SPANS = 4
MAX_PLANNED = 12
KEY_DIGITS = 8
"""How much of a node id names a server in a plan."""
RECORD_LIFETIME_S = 300.0
RECORD_RENEWAL_S = 60.0
ACCEPTANCE_LIFETIME_S = 120.0
MAX_CLOCK_SKEW_S = 120.0

_RECORD_LABEL = b"shoal record 1"
_ACCEPTANCE_LABEL = b"shoal acceptance 1"

Key = Annotated[str, Meta(max_length=KEY_DIGITS)]
Address = Annotated[str, Meta(max_length=128)]


class ServerRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """A server's own account of itself. Times are seconds since the Unix epoch, rates rows per second.

    `numerics` names the arithmetic without the weights. A `draining` server takes no new sessions; `next_span` is where an
    announced move leads. `round_trips` are seconds to likely successors, by node id. `max_blocks` is how many blocks it has
    memory for (0: its owner chose its blocks, and it never moves). `on_disk` are blocks that it can load without a network, and
    `fetch_s` the seconds that another one takes to fetch (0: unknown). `plan` is where it thinks that servers, named by the
    first KEY_DIGITS digits of their ids, should go.
    """

    peer: Peer
    sequence: Counter
    issued_at: float
    expires_at: float
    addresses: Annotated[tuple[Address, ...], Meta(max_length=MAX_ADDRESSES)]
    model: ModelSpec
    span: Span
    name: Annotated[str, Meta(max_length=64)] = ""
    numerics: Text = ""
    bits_per_weight: float = 32.0
    decode_rows_per_s: float = 0.0
    prefill_rows_per_s: float = 0.0
    free_tokens: int = 0
    queued_rows: int = 0
    draining: bool = False
    next_span: Span | None = None
    round_trips: Annotated[tuple[tuple[Peer, float], ...], Meta(max_length=MAX_ROUND_TRIPS)] = ()
    max_blocks: Annotated[int, Meta(ge=0, le=1 << 20)] = 0
    version: Annotated[str, Meta(max_length=32)] = ""
    on_disk: Annotated[tuple[Span, ...], Meta(max_length=MAX_DISK_SPANS)] = ()
    fetch_s: float = 0.0
    plan: Annotated[tuple[tuple[Key, Span], ...], Meta(max_length=MAX_PLANNED)] = ()


class Acceptance(msgspec.Struct, frozen=True):
    """`peer` agrees that `upstream` may dial it for a session's link."""

    session: Secret
    peer: Peer
    upstream: Peer
    generation: Counter
    expires_at: float


class SignedRecord(msgspec.Struct, frozen=True):
    """A verified record together with the bytes that prove it."""

    record: ServerRecord
    data: bytes


_record_decoder = msgspec.msgpack.Decoder(ServerRecord)
_acceptance_decoder = msgspec.msgpack.Decoder(Acceptance)


def sign_record(record: ServerRecord, identity: Identity) -> SignedRecord:
    """The record as bytes: a 64-byte signature, then msgpack.

    Raises ValueError when it is larger than MAX_RECORD_BYTES: shorten names or addresses.
    """
    body = msgspec.msgpack.encode(record)
    data = identity.sign(_RECORD_LABEL, body) + body
    if len(data) > MAX_RECORD_BYTES:
        raise ValueError(f"a record of {len(data)} bytes is larger than {MAX_RECORD_BYTES}")
    return SignedRecord(record, data)


def verify_record(data: bytes, now: float) -> SignedRecord:
    """The record in these bytes; raises RecordError if it is malformed, forged, expired or from the future."""
    signed = parse_record(data)
    record = signed.record
    if not record.expires_at > now:
        raise RecordError(f"the record of {record.peer[:8]} has expired")
    if not record.issued_at <= now + MAX_CLOCK_SKEW_S or record.expires_at > now + MAX_CLOCK_SKEW_S + RECORD_LIFETIME_S:
        raise RecordError(f"the record of {record.peer[:8]} is from the future: is a clock wrong?")
    return signed


def parse_record(data: bytes) -> SignedRecord:
    """The record in these bytes, whatever the time is; raises RecordError if it is malformed or forged."""
    if len(data) > MAX_RECORD_BYTES:
        raise RecordError(f"a record of {len(data)} bytes is larger than {MAX_RECORD_BYTES}")
    try:
        record = _record_decoder.decode(data[SIGNATURE_BYTES:])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RecordError(f"a record does not parse: {error}") from error
    if not verify(PeerId(record.peer), _RECORD_LABEL, data[SIGNATURE_BYTES:], data[:SIGNATURE_BYTES]):
        raise RecordError(f"the record of {record.peer[:8]} is not signed by its node")
    if not 0 <= record.span.start < record.span.stop <= record.model.num_blocks:
        raise RecordError(f"the record of {record.peer[:8]} has span {record.span} of {record.model.num_blocks} blocks")
    return SignedRecord(record, data)


def sign_acceptance(acceptance: Acceptance, identity: Identity) -> bytes:
    """The acceptance as bytes: a 64-byte signature, then msgpack."""
    body = msgspec.msgpack.encode(acceptance)
    return identity.sign(_ACCEPTANCE_LABEL, body) + body


def verify_acceptance(data: bytes, now: float) -> Acceptance:
    """The acceptance in these bytes; raises RecordError if it is malformed, forged or expired."""
    try:
        acceptance = _acceptance_decoder.decode(data[SIGNATURE_BYTES:])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RecordError(f"an acceptance does not parse: {error}") from error
    signed = verify(PeerId(acceptance.peer), _ACCEPTANCE_LABEL, data[SIGNATURE_BYTES:], data[:SIGNATURE_BYTES])
    if not signed or not acceptance.expires_at > now:
        raise RecordError(f"the acceptance of {acceptance.peer[:8]} is forged or expired")
    return acceptance
