"""What a private swarm's owner and its delegates sign, for tests."""

from __future__ import annotations

import base64
import os

import msgspec

from shoal.swarm.identity import Identity
from shoal.swarm.membership.credentials import (
    DELEGATION_PREFIX,
    INVITE_PREFIX,
    Certificate,
    Delegation,
    Invite,
    Revocations,
    sign_certificate,
    sign_delegation,
    sign_invite,
    sign_revocations,
)
from tests.unit.swarm.directory.test_records import NOW

OWNER, DELEGATE, NODE, OTHER = (Identity.generate() for _ in range(4))
SWARM = OWNER.peer
DAY_S = 86_400.0
NOBODY_OUT = Revocations(SWARM, 0)


def certificate(issuer: Identity = OWNER, **changes: object) -> bytes:
    """A sound certificate for NODE, with changes."""
    fields = {"swarm": SWARM, "peer": NODE.peer, "issuer": issuer.peer, "issued_at": NOW, "expires_at": NOW + DAY_S}
    return sign_certificate(Certificate(**{**fields, **changes}), issuer)


def delegation(until: float = NOW + 30 * DAY_S, peer: str = DELEGATE.peer, owner: Identity = OWNER) -> bytes:
    """A delegation to DELEGATE, with changes."""
    return unread(sign_delegation(Delegation(owner.peer, peer, until), owner), DELEGATION_PREFIX)


def unread(text: str, prefix: str) -> bytes:
    """The statement in a string, whatever it says."""
    body = text.removeprefix(prefix)
    return base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))


def invite(owner: Identity = OWNER, **changes: object) -> bytes:
    """An invite that DELEGATE redeems, with changes."""
    fields: dict[str, object] = {
        "swarm": owner.peer,
        "id": os.urandom(16),
        "redeemer": DELEGATE.peer,
        "addresses": ("tls://127.0.0.1:1",),
        "expires_at": NOW + DAY_S,
        "name": "home",
        **changes,
    }
    return unread(sign_invite(Invite(**fields), owner), INVITE_PREFIX)


def revocations(number: int, nodes: tuple[str, ...] = (), invites: tuple[bytes, ...] = ()) -> bytes:
    """A list signed by the owner."""
    return sign_revocations(Revocations(SWARM, number, frozenset(nodes), frozenset(invites)), OWNER)


def parse_id(data: bytes) -> bytes:
    """An invite's id."""
    return msgspec.msgpack.decode(data[64:], type=Invite).id
