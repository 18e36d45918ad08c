"""Turns invites into certificates, and renews them: at the owner's node, or at a delegate."""

from __future__ import annotations

from typing import NamedTuple

from shoal.clock import Clock
from shoal.errors import NotAMember
from shoal.swarm.identity import Identity
from shoal.swarm.membership.credentials import (
    CERTIFICATE_LIFETIME_S,
    CLOCK_AHEAD_S,
    RENEWAL_WINDOW_S,
    Certificate,
    Revocations,
    sign_certificate,
    verify_certificate,
    verify_invite,
)
from shoal.swarm.membership.storage import NodeFolder
from shoal.types import PeerId


class Issuer(NamedTuple):
    """Who signs: the swarm's key, or a delegate's node key with its delegation, which ends at `until`."""

    swarm: PeerId
    key: Identity
    delegation: bytes = b""
    until: float = float("inf")

    def certify(self, peer: PeerId, now: float, invite: bytes = b"") -> bytes:
        """A certificate that holds now; raises NotAMember when the delegation has ended."""
        if not now < self.until:
            raise NotAMember("the delegation of this node has expired")
        expires_at = min(now + CERTIFICATE_LIFETIME_S, self.until)
        issued_at = now - CLOCK_AHEAD_S
        certificate = Certificate(self.swarm, peer, self.key.peer, issued_at, expires_at, invite, self.delegation)
        return sign_certificate(certificate, self.key)


class CertificateIssuer:
    """Answers `redeem` and `renew` at the node `me`. Every refusal is a NotAMember."""

    def __init__(self, me: PeerId, issuer: Issuer, folder: NodeFolder, clock: Clock) -> None:
        self._me = me
        self._issuer = issuer
        self._folder = folder
        self._clock = clock

    def redeem(self, data: bytes, peer: PeerId, revocations: Revocations) -> bytes:
        """A first certificate for `peer`. The node that has used an invite may do so again, nobody else ever."""
        invite, now = verify_invite(data), self._clock.wall()
        if invite.swarm != self._issuer.swarm or invite.redeemer != self._me:
            raise NotAMember("the invite is for another swarm or another redeemer")
        if not now < invite.expires_at:
            raise NotAMember("the invite has expired")
        if invite.id in revocations.invites or peer in revocations.nodes:
            raise NotAMember("the invite or the node is revoked")
        certificate = self._issuer.certify(peer, now, invite.id)
        if self._folder.claim(invite.id, peer) != peer:
            raise NotAMember("the invite was used by another node")
        return certificate

    def renew(self, data: bytes, peer: PeerId, revocations: Revocations) -> bytes:
        """The next certificate for `peer`, whose present one may have expired, but not for long."""
        now = self._clock.wall()
        certificate = verify_certificate(data, self._issuer.swarm, now, late_s=RENEWAL_WINDOW_S)
        if certificate.peer != peer or revocations.names(certificate):
            raise NotAMember("the certificate is another node's or revoked")
        return self._issuer.certify(peer, now, certificate.invite)
