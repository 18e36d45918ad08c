"""What a node asks another about the swarm and about itself."""

from __future__ import annotations

from typing import Annotated, ClassVar, get_args

import msgspec
from msgspec import Meta

from shoal.protocol.messages.field_types import (
    MAX_BATCH_BYTES,
    MAX_CONFIG_BYTES,
    MAX_DIGEST_BYTES,
    MAX_GREEDIEST,
    MAX_WANT,
    Counter,
    Elapsed,
    Moment,
    Rate,
    Text,
)
from shoal.protocol.messages.message import Message, Question, Refusal, Vocabulary


class RecordDigest(Message, frozen=True, tag="digest"):
    """Opens a record exchange; the payload lists (node id, sequence) of the records held.

    `fingerprint` is of the model whose servers are to be told of first, if there is one. `sent_at` is the sender's clock: how
    old it takes its own record to be follows (0: it does not say).
    """

    fingerprint: Text = ""
    sent_at: Moment = 0.0

    max_payload_bytes: ClassVar[int] = MAX_DIGEST_BYTES


class RecordBatch(Message, frozen=True, tag="records"):
    """Payload: `want` node ids, then length-prefixed signed records. `sent_at` is the sender's clock, as in `digest`."""

    max_payload_bytes: ClassVar[int] = MAX_BATCH_BYTES
    want: Annotated[int, Meta(ge=0, le=MAX_WANT)] = 0
    sent_at: Moment = 0.0


EXCHANGE = Question(RecordDigest, RecordBatch, per_span=False)
"""After the answer, one more `records` goes the other way."""


class Describe(Message, frozen=True, tag="describe"):
    """Asks for a model's configuration and where its tokenizer comes from."""

    fingerprint: Text


class Description(Message, frozen=True, tag="description"):
    """Payload: the checkpoint's configuration as JSON text."""

    max_payload_bytes: ClassVar[int] = MAX_CONFIG_BYTES
    name: Text
    fingerprint: Text
    source: Text
    revision: Text = ""


DESCRIBE = Question(Describe, Description, per_span=True)


class GetStatus(Message, frozen=True, tag="get_status"):
    """Asks for the server's load."""


class AccountLoad(msgspec.Struct, frozen=True):
    """What one account has of a server: sessions, tokens of its cache, rows that wait, bytes kept in journals."""

    sessions: Counter
    tokens: Counter
    queued_rows: Counter
    journal_bytes: Counter


class Status(Message, frozen=True, tag="status"):
    """A server's load now; rates are rows per second through its whole span, 0 when not yet measured.

    Since it started, whatever blocks it served meanwhile: `prefix_rows` were found in its prefix cache and not computed,
    `rows_computed` were computed, `sessions_opened` and `moves` to other blocks were made.

    `clients` share it now, and since it took its blocks `displaced` sessions have made room. Who asks has `your_sessions` and
    `your_tokens`; an equal share would be `share_sessions` and `share_tokens`. `greediest` are the accounts that have most,
    without their names. `dials` were made for clients of late, and count until time has given them back.
    """

    sessions: Counter
    max_sessions: Counter
    queued_rows: Counter
    free_tokens: Counter
    total_tokens: Counter
    decode_rows_per_s: Rate
    prefill_rows_per_s: Rate
    uptime_s: Elapsed
    max_batch_sessions: Counter = 0
    exact: bool = True
    prefix_rows: Counter = 0
    rows_computed: Counter = 0
    sessions_opened: Counter = 0
    moves: Counter = 0
    clients: Counter = 0
    displaced: Counter = 0
    your_sessions: Counter = 0
    your_tokens: Counter = 0
    share_sessions: Rate = 0.0
    share_tokens: Counter = 0
    journal_bytes: Counter = 0
    max_journal_bytes: Counter = 0
    dials: Counter = 0
    max_dials: Counter = 0
    your_queued_rows: Counter = 0
    your_journal_bytes: Counter = 0
    your_dials: Counter = 0
    share_dials: Counter = 0
    greediest: Annotated[tuple[AccountLoad, ...], Meta(max_length=MAX_GREEDIEST)] = ()


STATUS = Question(GetStatus, Status, per_span=True)

DirectoryMessage = RecordDigest | RecordBatch | Describe | Description | GetStatus | Status | Refusal

DIRECTORY: Vocabulary[Message] = Vocabulary("questions about the swarm", get_args(DirectoryMessage))
DIRECTORY_QUESTIONS = (EXCHANGE, DESCRIBE, STATUS)
