"""Signed records for tests, valid now."""

from __future__ import annotations

import time

import msgspec

from shoal.swarm.directory.records import RECORD_LIFETIME_S, ServerRecord, SignedRecord
from shoal.swarm.identity import Identity
from shoal.types import ModelSpec, Span

FINGERPRINT = "f0" * 16


def signed_record(
    identity: Identity, addresses: tuple[str, ...] = ("tls://127.0.0.1:1",), **changes: object
) -> SignedRecord:
    """A record of a whole tiny model, sound but for the changes."""
    now = time.time()
    fields: dict[str, object] = {
        "peer": identity.peer,
        "sequence": 1,
        "issued_at": now,
        "expires_at": now + RECORD_LIFETIME_S,
        "addresses": addresses,
        "model": ModelSpec("tiny", FINGERPRINT, 12, 48),
        "span": Span(0, 12),
        **changes,
    }
    return sealed(ServerRecord(**fields), identity)  # type: ignore[arg-type]


def sealed(record: ServerRecord, identity: Identity) -> SignedRecord:
    """The record signed as it is, however impossible: what a hostile node can do."""
    body = msgspec.msgpack.encode(record)
    return SignedRecord(record, identity.sign(b"shoal record 1", body) + body)
