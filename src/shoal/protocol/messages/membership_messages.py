"""What travels in a private swarm before anything else does."""

from __future__ import annotations

from typing import ClassVar, get_args

from shoal.protocol.messages.field_types import MAX_REVOCATIONS_BYTES, CertificateBytes, Counter, InviteBytes
from shoal.protocol.messages.message import Message, Question, Refusal, Vocabulary


class MemberHello(Message, frozen=True, tag="present"):
    """The first message of either side in a private swarm: who this is, and the number of its revocation list.

    `news`: a `revoked` message follows. `renews`: certificates can be renewed here.
    """

    certificate: CertificateBytes
    number: Counter = 0
    news: bool = False
    renews: bool = False


class Revoked(Message, frozen=True, tag="revoked"):
    """Payload: a signed revocation list."""

    max_payload_bytes: ClassVar[int] = MAX_REVOCATIONS_BYTES


class Redeem(Message, frozen=True, tag="redeem"):
    """Asks a redeemer for a first certificate."""

    invite: InviteBytes


class Renew(Message, frozen=True, tag="renew"):
    """Asks a redeemer for the next certificate."""

    certificate: CertificateBytes


class Certified(Message, frozen=True, tag="certified"):
    """A certificate for the node that asked. Payload: the redeemer's revocation list, if it has one."""

    max_payload_bytes: ClassVar[int] = MAX_REVOCATIONS_BYTES
    certificate: CertificateBytes


REDEEM = Question(Redeem, Certified, per_span=False)
RENEW = Question(Renew, Certified, per_span=False)

MembershipMessage = MemberHello | Revoked | Redeem | Renew | Certified | Refusal
Greeting = MemberHello | Redeem | Renew

MEMBERSHIP: Vocabulary[Message] = Vocabulary("the gate of a private swarm", get_args(MembershipMessage))

GREETING: Vocabulary[Greeting] = Vocabulary("the beginning of a private swarm's channel", get_args(Greeting))
"""What a dialler may begin with."""
