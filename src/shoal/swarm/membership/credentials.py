"""What a private swarm's owner and its delegates sign (docs/wire.md, "Private swarms"). Pure.

Each statement is a 64-byte ed25519 signature over a label of its own and a msgpack map, then that map. The swarm's id is
the owner's public key. Times are seconds since the Unix epoch.
"""

from __future__ import annotations

import base64
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

from shoal.errors import InviteError, NotAMember
from shoal.protocol.messages import (
    MAX_CERTIFICATE_BYTES,
    MAX_INVITE_BYTES,
    MAX_REVOCATIONS_BYTES,
    Counter,
    Moment,
    Peer,
    Secret,
)
from shoal.swarm.directory.records import MAX_ADDRESSES, MAX_CLOCK_SKEW_S
from shoal.swarm.discovery.ticket import Ticket
from shoal.swarm.identity import SIGNATURE_BYTES, Identity, verify
from shoal.transport.address import Address
from shoal.types import PeerId

CERTIFICATE_LIFETIME_S = 24 * 3600.0
CLOCK_AHEAD_S = 3600.0
"""A certificate begins so long before it is made: the issuer's clock may be ahead of others'."""

MAX_CERTIFICATE_LIFETIME_S = 7 * 24 * 3600.0
"""What a verifier accepts: a delegate cannot make its certificates outlive its own disgrace by much."""

RENEWAL_WINDOW_S = 30 * 24 * 3600.0
"""How long after its end a certificate can still be renewed, so that a machine may be off for a while."""

MAX_DELEGATION_BYTES = 512
MAX_REVOKED = 4096
INVITE_WORD = "shoal-invite"
"""What invites of every version begin with."""

INVITE_PREFIX = f"{INVITE_WORD}1-"
DELEGATION_PREFIX = "shoal-delegation1-"

_INVITE_LABEL = b"shoal invite 1"
_DELEGATION_LABEL = b"shoal delegation 1"
_CERTIFICATE_LABEL = b"shoal certificate 1"
_REVOCATIONS_LABEL = b"shoal revocations 1"

SwarmName = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,31}\Z")]
S = TypeVar("S", bound=msgspec.Struct)


class Invite(msgspec.Struct, frozen=True):
    """Whoever holds this may become a member, once, at the node `redeemer` and nowhere else."""

    swarm: Peer
    id: Secret
    redeemer: Peer
    addresses: Annotated[tuple[Address, ...], Meta(min_length=1, max_length=MAX_ADDRESSES)]
    expires_at: Moment
    name: SwarmName

    @property
    def ticket(self) -> Ticket:
        """Where it can be redeemed."""
        return Ticket(self.redeemer, self.addresses)


class Delegation(msgspec.Struct, frozen=True):
    """The owner lets the node `peer` redeem invites that name it, and renew certificates."""

    swarm: Peer
    peer: Peer
    expires_at: Moment


class Certificate(msgspec.Struct, frozen=True, omit_defaults=True):
    """The node `peer` is a member. `issuer` is the swarm's own key, or a delegate whose `delegation` is inside.

    `invite` is what the node was admitted by, through all renewals; empty where the owner wrote it for itself.
    """

    swarm: Peer
    peer: Peer
    issuer: Peer
    issued_at: Moment
    expires_at: Moment
    invite: Annotated[bytes, Meta(max_length=16)] = b""
    delegation: Annotated[bytes, Meta(max_length=MAX_DELEGATION_BYTES)] = b""


class Revocations(msgspec.Struct, frozen=True):
    """Who is out: nodes, and everybody who came by one of these invites. The highest number counts."""

    swarm: Peer
    number: Counter
    nodes: Annotated[frozenset[Peer], Meta(max_length=MAX_REVOKED)] = frozenset()
    invites: Annotated[frozenset[Secret], Meta(max_length=MAX_REVOKED)] = frozenset()

    def names(self, certificate: Certificate) -> bool:
        """Whether this member, its invite or the delegate who certified it is out."""
        nodes = (certificate.peer, certificate.issuer)
        return any(node in self.nodes for node in nodes) or certificate.invite in self.invites


_invites = msgspec.msgpack.Decoder(Invite)
_delegations = msgspec.msgpack.Decoder(Delegation)
_certificates = msgspec.msgpack.Decoder(Certificate)
_revocations = msgspec.msgpack.Decoder(Revocations)


def _sign(statement: msgspec.Struct, label: bytes, signer: Identity, limit_bytes: int) -> bytes:
    body = msgspec.msgpack.encode(statement)
    data = signer.sign(label, body) + body
    if len(data) > limit_bytes:
        raise ValueError(f"a {type(statement).__name__.lower()} of {len(data)} bytes is larger than {limit_bytes}")
    return data


def _parse(data: bytes, decoder: msgspec.msgpack.Decoder[S], limit_bytes: int) -> S:
    if len(data) > limit_bytes:
        raise NotAMember(f"a statement of {len(data)} bytes is larger than {limit_bytes}")
    try:
        return decoder.decode(data[SIGNATURE_BYTES:])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise NotAMember(f"a membership statement does not parse: {error}") from error


def _check_signature(data: bytes, label: bytes, signer: str, what: str) -> None:
    if not verify(PeerId(signer), label, data[SIGNATURE_BYTES:], data[:SIGNATURE_BYTES]):
        raise NotAMember(f"{what} is not signed by {signer[:8]}")


def sign_invite(invite: Invite, owner: Identity) -> str:
    """The invite as one string; raises ValueError when its addresses make it too long."""
    return INVITE_PREFIX + _text(_sign(invite, _INVITE_LABEL, owner, MAX_INVITE_BYTES))


def parse_invite(text: str) -> tuple[Invite, bytes]:
    """The invite in a string, and its bytes; its signature is checked against the swarm that it names.

    Raises InviteError.
    """
    data = _data(text, INVITE_PREFIX, MAX_INVITE_BYTES)
    try:
        return verify_invite(data), data
    except NotAMember as error:
        raise InviteError(f"the invite is damaged (is it complete?): {error}") from error


def verify_invite(data: bytes) -> Invite:
    """The invite in these bytes, whatever its time; raises NotAMember for a malformed or forged one."""
    invite = _parse(data, _invites, MAX_INVITE_BYTES)
    _check_signature(data, _INVITE_LABEL, invite.swarm, "an invite")
    return invite


def sign_delegation(delegation: Delegation, owner: Identity) -> str:
    """The delegation as one string."""
    return DELEGATION_PREFIX + _text(_sign(delegation, _DELEGATION_LABEL, owner, MAX_DELEGATION_BYTES))


def parse_delegation(text: str) -> tuple[Delegation, bytes]:
    """The delegation in a string, and its bytes; raises InviteError."""
    data = _data(text, DELEGATION_PREFIX, MAX_DELEGATION_BYTES)
    try:
        return verify_delegation(data), data
    except NotAMember as error:
        raise InviteError(f"the delegation is damaged (is it complete?): {error}") from error


def verify_delegation(data: bytes) -> Delegation:
    """The delegation in these bytes, whatever its time; raises NotAMember for a malformed or forged one."""
    delegation = _parse(data, _delegations, MAX_DELEGATION_BYTES)
    _check_signature(data, _DELEGATION_LABEL, delegation.swarm, "a delegation")
    return delegation


def sign_certificate(certificate: Certificate, issuer: Identity) -> bytes:
    """The certificate as bytes."""
    return _sign(certificate, _CERTIFICATE_LABEL, issuer, MAX_CERTIFICATE_BYTES)


def verify_certificate(data: bytes, swarm: str, now: float, late_s: float = 0.0) -> Certificate:
    """The certificate in these bytes, valid now or until `late_s` ago.

    Raises NotAMember for one that is malformed, forged, of another swarm, expired, or from the future.
    """
    certificate = _parse(data, _certificates, MAX_CERTIFICATE_BYTES)
    if certificate.swarm != swarm:
        raise NotAMember(f"the certificate is for swarm {certificate.swarm[:8]}, not {swarm[:8]}")
    if certificate.issuer != swarm:
        delegation = verify_delegation(certificate.delegation)
        if (delegation.swarm, delegation.peer) != (swarm, certificate.issuer):
            raise NotAMember(f"{certificate.issuer[:8]} may not certify members of swarm {swarm[:8]}")
        if not certificate.expires_at <= delegation.expires_at:
            raise NotAMember("the certificate outlives its delegation")
    _check_signature(data, _CERTIFICATE_LABEL, certificate.issuer, "the certificate")
    if not now < certificate.expires_at + late_s:
        raise NotAMember("the certificate has expired")
    lifetime_s = certificate.expires_at - certificate.issued_at
    if not certificate.issued_at <= now + MAX_CLOCK_SKEW_S or not lifetime_s <= MAX_CERTIFICATE_LIFETIME_S:
        raise NotAMember("the certificate is from the future or lives too long: is a clock wrong?")
    return certificate


def sign_revocations(revocations: Revocations, owner: Identity) -> bytes:
    """The list as bytes."""
    return _sign(revocations, _REVOCATIONS_LABEL, owner, MAX_REVOCATIONS_BYTES)


def verify_revocations(data: bytes, swarm: str) -> Revocations:
    """The list in these bytes; raises NotAMember for one that is malformed, forged or of another swarm."""
    revocations = _parse(data, _revocations, MAX_REVOCATIONS_BYTES)
    if revocations.swarm != swarm:
        raise NotAMember(f"the revocation list is for swarm {revocations.swarm[:8]}, not {swarm[:8]}")
    _check_signature(data, _REVOCATIONS_LABEL, swarm, "the revocation list")
    return revocations


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode("ascii").rstrip("=")


def _data(text: str, prefix: str, limit_bytes: int) -> bytes:
    text = text.strip()
    body = text.removeprefix(prefix)
    if body == text or len(body) > limit_bytes * 4 // 3 + 4:
        raise InviteError(f"this does not start with {prefix}, or is too long: {text[:40]!r}")
    try:
        return base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
    except ValueError as error:
        raise InviteError(f"the text is damaged (is it complete?): {text[:40]!r}") from error
