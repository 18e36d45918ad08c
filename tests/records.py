"""Signed records for tests, valid now."""

from __future__ import annotations

import time

from shoal.swarm.directory.records import RECORD_LIFETIME_S, ServerRecord, SignedRecord, sign_record
from shoal.swarm.identity import Identity
from shoal.types import ModelSpec, Span

FINGERPRINT = "f0" * 16


def signed_record(
    identity: Identity, addresses: tuple[str, ...] = ("tls://127.0.0.1:1",), **changes: object
) -> SignedRecord:
    """A sound record of a whole tiny model, with changes."""
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
    return sign_record(ServerRecord(**fields), identity)  # type: ignore[arg-type]
