"""What one node knows of its private swarm: its own certificate, who is out, and whom it has seen certified."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple

from shoal.clock import Clock
from shoal.errors import NotAMember, UsageError
from shoal.protocol.messages import MemberHello
from shoal.swarm.membership.credentials import Certificate, Revocations, verify_certificate, verify_revocations
from shoal.swarm.membership.storage import SwarmFolder
from shoal.types import PeerId

MAX_KNOWN = 8192
"""Members remembered; beyond that the one that was met first is forgotten, and greeted like a new one again."""

log = logging.getLogger("shoal.swarm")


class PeerMembership(NamedTuple):
    """A member that was met: its certificate, the number of its revocation list, whether it renews certificates."""

    certificate: Certificate
    number: int
    renews: bool


class MembershipState:
    """Decides who is a member. `on_change` runs when the list has changed.

    `certificate` is this node's own, and `renews` whether it renews those of others: it tells them in greetings.
    """

    def __init__(
        self, swarm: PeerId, folder: SwarmFolder, clock: Clock, certificate: bytes = b"", renews: bool = False
    ) -> None:
        self.swarm = swarm
        self._own = certificate
        self._renews = renews
        self.revocations = Revocations(swarm, 0)
        self.revocations_data = b""
        self.known: dict[PeerId, PeerMembership] = {}
        self.on_change: list[Callable[[], None]] = []
        self._folder = folder
        self._file_seen_at = 0
        self._clock = clock
        self.poll()

    @property
    def certificate(self) -> bytes:
        """This node's own."""
        return self._own

    def renewed(self, certificate: bytes) -> None:
        """This node has another certificate from now on."""
        self._own = certificate

    def present(self, to: PeerId, number: int | None = None) -> MemberHello:
        """This node's greeting for a peer whose list has this number, as far as is known."""
        if number is None and to in self.known:
            number = self.known[to].number
        news = number is not None and number < self.revocations.number
        return MemberHello(self._own, self.revocations.number, news, self._renews)

    def meet(self, peer: PeerId, greeting: MemberHello) -> None:
        """Take a peer's greeting; raises NotAMember unless it proves that the peer is a member now."""
        certificate = self._certificate(peer, greeting.certificate)
        self.known.pop(peer, None)
        if len(self.known) >= MAX_KNOWN:
            del self.known[next(iter(self.known))]
        self.known[peer] = PeerMembership(certificate, greeting.number, greeting.renews)

    def _certificate(self, peer: PeerId, data: bytes) -> Certificate:
        """What proves that this peer is a member now; raises NotAMember."""
        certificate = verify_certificate(data, self.swarm, self._clock.wall())
        if certificate.peer != peer:
            raise NotAMember(f"the certificate is {certificate.peer[:8]}'s, not {peer[:8]}'s")
        if self.revocations.names(certificate):
            raise NotAMember(f"{peer[:8]} is revoked")
        return certificate

    def certifies(self, peer: PeerId, data: bytes) -> bool:
        """Whether these bytes are a certificate by which this peer is a member now, met or not."""
        try:
            self._certificate(peer, data)
        except NotAMember:
            return False
        return True

    def is_member(self, peer: PeerId) -> bool:
        """Whether this peer was met and its certificate holds now."""
        known = self.known.get(peer)
        return (
            known is not None
            and self._clock.wall() < known.certificate.expires_at
            and not self.revocations.names(known.certificate)
        )

    def is_revoked(self, peer: PeerId) -> bool:
        """Whether this peer is out: by its id, its invite or whoever certified it."""
        known = self.known.get(peer)
        return peer in self.revocations.nodes or (known is not None and self.revocations.names(known.certificate))

    def take(self, data: bytes) -> bool:
        """Take a revocation list if its number is higher; returns whether it was.

        Raises NotAMember for one that the owner has not signed. It is kept on disk before it counts; where it cannot be, it
        counts until the next start, which gets it from others again.
        """
        revocations = verify_revocations(data, self.swarm)
        if revocations.number <= self.revocations.number:
            return False
        try:
            self._folder.keep_revocations(data)
        except UsageError as error:
            log.warning("the list of who is out of %s is not kept: %s", self._folder.name, error)
        else:
            self._file_seen_at = self._folder.revocations_changed_at()
        self._use(revocations, data)
        return True

    def poll(self) -> bool:
        """Look whether another process of this machine has kept a newer list; returns whether it had."""
        changed_at = self._folder.revocations_changed_at()
        if changed_at == self._file_seen_at:
            return False
        self._file_seen_at = changed_at
        data = self._folder.revocations()
        if not data:
            return False
        try:
            revocations = verify_revocations(data, self.swarm)
        except NotAMember as error:
            raise UsageError(f"the revocation list in {self._folder.path} is damaged: {error}") from error
        if revocations.number <= self.revocations.number:
            return False
        self._use(revocations, data)
        return True

    def _use(self, revocations: Revocations, data: bytes) -> None:
        self.revocations, self.revocations_data = revocations, data
        for tell in self.on_change:
            tell()
