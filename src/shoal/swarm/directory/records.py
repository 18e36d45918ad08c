"""What servers sign: their record in the swarm, and acceptances of a session's link."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from shoal.errors import InvalidMessage, RecordError, UsageError
from shoal.protocol.messages import MAX_RECORD_BYTES as MAX_RECORD_BYTES
from shoal.protocol.messages import Counter, Elapsed, Moment, Peer, Rate, Secret
from shoal.swarm.identity import SIGNATURE_BYTES, Identity, verify
from shoal.transport.address import Address, node_address
from shoal.types import MAX_KL_NATS, PRINTABLE_ASCII, ModelSpec, Name, PeerId, Span

MAX_ADDRESSES = 8
LEAST_ADDRESSES = 2
"""How many addresses of a record stay in it, whatever else it says."""
MAX_ROUND_TRIPS = 4
MAX_DISK_SPANS = 4
MAX_PLANNED = 12
MAX_NUMERICS_CHARS = 128
MAX_VERSION_CHARS = 32
MAX_BITS_PER_WEIGHT = 64
MAX_HELD_BLOCKS = 1 << 20
KEY_DIGITS = 8
"""How much of a node id names a server in a plan."""
RECORD_LIFETIME_S = 300.0
RECORD_RENEWAL_S = 60.0
ACCEPTANCE_LIFETIME_S = 120.0
MAX_CLOCK_SKEW_S = 120.0
"""How far clocks may differ of nodes that have not told each other what theirs shows."""
MAX_TOLD_SKEW_S = 86_400.0
"""How far they may differ of nodes that have: more is a clock that was never set."""

_RECORD_LABEL = b"shoal record 1"
_ACCEPTANCE_LABEL = b"shoal acceptance 1"

Key = Annotated[str, Meta(max_length=KEY_DIGITS, pattern=r"^[0-9a-f]*\Z")]


class ServerRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """A server's own account of itself. Times are seconds since the Unix epoch, rates rows per second.

    `numerics` names the arithmetic without the weights. A `draining` server takes no new sessions; `next_span` is where an
    announced move leads. `round_trips` are seconds to likely successors, by node id, the nearest first. `max_blocks` is how
    many blocks it has memory for (0: its owner chose its blocks, and it never moves). `on_disk` are blocks that it can load
    without a network, and `fetch_s` the seconds that another one takes to fetch (0: unknown). `plan` is where it thinks that
    servers, named by the first KEY_DIGITS digits of their ids, should go.

    `bits_per_weight` are those of its blocks' matrices on average, scales included (0: unknown). `kl_nats` says how far the
    quantized model is from the base: the KL divergence for a token, on average (None: unknown).
    """

    peer: Peer
    sequence: Counter
    issued_at: Moment
    expires_at: Moment
    addresses: Annotated[tuple[Address, ...], Meta(max_length=MAX_ADDRESSES)]
    model: ModelSpec
    span: Span
    name: Name = ""
    numerics: Annotated[str, Meta(max_length=MAX_NUMERICS_CHARS, pattern=PRINTABLE_ASCII)] = ""
    bits_per_weight: Annotated[float, Meta(ge=0, le=MAX_BITS_PER_WEIGHT)] = 0.0
    decode_rows_per_s: Rate = 0.0
    prefill_rows_per_s: Rate = 0.0
    free_tokens: Counter = 0
    queued_rows: Counter = 0
    draining: bool = False
    next_span: Span | None = None
    round_trips: Annotated[tuple[tuple[Peer, Elapsed], ...], Meta(max_length=MAX_ROUND_TRIPS)] = ()
    max_blocks: Annotated[int, Meta(ge=0, le=MAX_HELD_BLOCKS)] = 0
    version: Annotated[str, Meta(max_length=MAX_VERSION_CHARS, pattern=PRINTABLE_ASCII)] = ""
    on_disk: Annotated[tuple[Span, ...], Meta(max_length=MAX_DISK_SPANS)] = ()
    fetch_s: Elapsed = 0.0
    plan: Annotated[tuple[tuple[Key, Span], ...], Meta(max_length=MAX_PLANNED)] = ()
    kl_nats: Annotated[float, Meta(ge=0, le=MAX_KL_NATS)] | None = None


class Acceptance(msgspec.Struct, frozen=True):
    """`peer` agrees that `upstream` may dial it for a session's link."""

    session: Secret
    peer: Peer
    upstream: Peer
    generation: Counter
    expires_at: Moment


class SignedRecord(msgspec.Struct, frozen=True):
    """A verified record together with the bytes that prove it."""

    record: ServerRecord
    data: bytes


_record_decoder = msgspec.msgpack.Decoder(ServerRecord)
_acceptance_decoder = msgspec.msgpack.Decoder(Acceptance)


def sign_record(record: ServerRecord, identity: Identity) -> SignedRecord:
    """The record as it is told to others, and its bytes: a 64-byte signature, then msgpack, MAX_RECORD_BYTES at most.

    What is least useful to others is left out where it would be longer: see `fitted`. Raises InvalidMessage for a field
    out of its bounds.
    """
    try:
        _check(_record_decoder.decode(msgspec.msgpack.encode(record)))
    except (msgspec.DecodeError, RecordError, TypeError, ValueError, OverflowError) as error:
        raise InvalidMessage(f"ServerRecord: {error}") from error
    record = fitted(record)
    body = msgspec.msgpack.encode(record)
    return SignedRecord(record, identity.sign(_RECORD_LABEL, body) + body)


def fitted(record: ServerRecord) -> ServerRecord:
    """The record, with as much of it as fits.

    Left out first are spans on disk from the last, then the farthest round trips, then the plan as a whole, since half of
    it may leave blocks without a server, then addresses from the last down to LEAST_ADDRESSES. What remains always fits.
    """
    while len(msgspec.msgpack.encode(record)) > MAX_RECORD_BYTES - SIGNATURE_BYTES:
        if record.on_disk:
            record = msgspec.structs.replace(record, on_disk=record.on_disk[:-1])
        elif record.round_trips:
            record = msgspec.structs.replace(record, round_trips=record.round_trips[:-1])
        elif record.plan:
            record = msgspec.structs.replace(record, plan=())
        else:
            assert len(record.addresses) > LEAST_ADDRESSES, "the limit has no room for the fields' bounds"
            record = msgspec.structs.replace(record, addresses=record.addresses[:-1])
    return record


def _check(record: ServerRecord) -> None:
    """Raises RecordError for what the fields' types cannot say: spans are parts of the model, addresses can be dialled."""
    of_others = (*record.on_disk, *(goal for _, goal in record.plan))
    for span in (record.span, *((record.next_span,) if record.next_span is not None else ()), *of_others):
        if not 0 <= span.start < span.stop <= record.model.num_blocks:
            raise RecordError(f"the record of {record.peer[:8]} has span {span} of {record.model.num_blocks} blocks")
    for address in record.addresses:
        try:
            node_address(address)
        except UsageError as error:
            raise RecordError(f"the record of {record.peer[:8]}: {error}") from error


def verify_record(data: bytes, now: float) -> SignedRecord:
    """The record in these bytes; raises RecordError if it is malformed, forged, expired or from the future."""
    signed = parse_record(data)
    check_times(signed.record, now)
    return signed


def check_times(record: ServerRecord, now: float) -> None:
    """Raises RecordError, saying how far off it is, for a record that has expired or is from the future."""
    if not record.expires_at > now:
        raise RecordError(
            f"the record of {record.peer[:8]} has expired {now - record.expires_at:.0f} s ago: is a clock wrong?"
        )
    if not record.issued_at <= now + MAX_CLOCK_SKEW_S or record.expires_at > now + MAX_CLOCK_SKEW_S + RECORD_LIFETIME_S:
        raise RecordError(
            f"the record of {record.peer[:8]} is from {record.issued_at - now:.0f} s in the future: is a clock wrong?"
        )


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
    _check(record)
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
