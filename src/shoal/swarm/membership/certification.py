"""A node's certificate: got by the owner's key or for an invite, kept in a file, renewed at members that renew."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from shoal.clock import Clock
from shoal.errors import InviteError, NotAMember, RecordError, ShoalError, UsageError
from shoal.protocol.messages import (
    MAX_REVOCATIONS_BYTES,
    MAX_TIME_S,
    REDEEM,
    RENEW,
    Certified,
    Question,
    Redeem,
    Renew,
)
from shoal.swarm.discovery.ticket import Ticket
from shoal.swarm.identity import Identity
from shoal.swarm.membership.certificate_issuer import CertificateIssuer, Issuer
from shoal.swarm.membership.credentials import (
    Certificate,
    Delegation,
    Invite,
    verify_certificate,
    verify_delegation,
)
from shoal.swarm.membership.membership_state import MembershipState
from shoal.swarm.membership.storage import Role, StoredMembership, SwarmFolder
from shoal.transport.asking import ask
from shoal.transport.dialler import Dialler
from shoal.types import PeerId

ASK_S = 10.0
"""How long a node that renews or redeems may take: one that is silent must not keep others from being asked."""

MAX_KEPT_PEERS = 8


class Certification:
    """The certificate of the node `identity`, as its folder keeps it; none before `obtain`. Raises what the folder raises."""

    def __init__(self, folder: SwarmFolder, role: Role, identity: Identity, dialler: Dialler, clock: Clock) -> None:
        key = folder.owner()
        self._owner = Issuer(key.peer, key) if key is not None else None
        self._folder = folder
        self._role = role
        self._node = folder.node(role)
        self._identity = identity
        self._dialler = dialler
        self._clock = clock
        self._kept = self._node.kept() or StoredMembership("", b"")

    @property
    def swarm(self) -> PeerId:
        """The swarm's id; empty before `obtain` in a new folder."""
        return PeerId(self._kept.swarm)

    @property
    def certificate(self) -> bytes:
        """The newest one."""
        return self._kept.certificate

    @property
    def peers(self) -> tuple[str, ...]:
        """Tickets of nodes that renew certificates."""
        return self._kept.peers

    @property
    def contacts(self) -> tuple[str, ...]:
        """Tickets of servers met."""
        return self._kept.contacts

    @property
    def renewal_due_at(self) -> float:
        """The certificate's half-life, in seconds of the wall clock, whatever that shows now."""
        certificate = self._kept_certificate()
        return (certificate.issued_at + certificate.expires_at) / 2

    async def obtain(self, invite: tuple[Invite, bytes] | None) -> None:
        """Have a certificate that holds: by the owner's key, as it was kept, renewed, or for the invite.

        A node that was put out gets a new key when it comes with a new invite. That is for the next start, which the error
        asks for: this one has shown the old key. Raises InviteError for an invite that is no use, NotAMember when the
        redeemer refuses, NetworkError when it is out of reach, UsageError when there is neither an invite nor a certificate.
        """
        if self._owner is not None:
            self._certify_self(self._owner)
            return
        if self.swarm:
            if invite is not None and invite[0].swarm != self.swarm:
                raise InviteError(
                    f"{self._folder.name!r} is another swarm here already: give this one a name (--swarm)"
                )
            if await self._still_member():
                if invite is None or not await self._is_put_out(invite[0]):
                    return
                self._begin_anew()
        if invite is None and not self.swarm:
            raise UsageError(f"this node has not joined {self._folder.name!r} yet: give an invite (--invite)")
        if invite is None:
            raise NotAMember(f"this node is out of {self._folder.name!r}, or was away too long: ask for a new invite")
        try:
            await self._redeem(*invite)
        except NotAMember:
            if self.swarm:
                self._begin_anew()
            raise

    async def renew(self, peers: Iterable[Ticket]) -> None:
        """The next certificate: the owner's own, or from the first of these or of the kept nodes that gives one.

        Any member may say that it renews, so one that ends no later than the present one is none. Raises the last refusal.
        """
        if self._owner is not None:
            self._certify_self(self._owner)
            return
        error: ShoalError = NotAMember("no node is known that renews certificates")
        for ticket in [*peers, *Ticket.sound(self._kept.peers)]:
            try:
                answer = await self._ask(ticket, Renew(self._kept.certificate))
                self._accept(self.swarm, answer, ticket, renewed=True)
                return
            except ShoalError as caught:
                error = caught
        raise error

    def delegate(self, delegation: Delegation, data: bytes) -> None:
        """Keep the owner's word that this node may certify others; raises InviteError when it is for another node."""
        if (delegation.swarm, delegation.peer) != (self.swarm, self._identity.peer):
            raise InviteError(f"the delegation is for node {delegation.peer[:8]}, not for {self._identity.peer[:8]}")
        self._keep(msgspec.structs.replace(self._kept, delegation=data))

    def remember(self, contacts: tuple[str, ...]) -> None:
        """Keep the tickets of these servers."""
        if contacts != self._kept.contacts:
            self._keep(msgspec.structs.replace(self._kept, contacts=contacts))

    def redeemer(self) -> CertificateIssuer | None:
        """What certifies others here: at a server of the owner or of a delegate."""
        issuer = self._owner
        if issuer is None and self._kept.delegation:
            until = self._kept_delegation().expires_at
            issuer = Issuer(self.swarm, self._identity, self._kept.delegation, until)
        if issuer is None or self._role != "server":
            return None
        return CertificateIssuer(self._identity.peer, issuer, self._node, self._clock)

    def _certify_self(self, owner: Issuer) -> None:
        self._keep_certificate(owner.swarm, owner.certify(self._identity.peer, self._clock.wall()), ())

    async def _still_member(self) -> bool:
        """Whether the kept certificate holds, or could be renewed; raises NetworkError when no node could be asked."""
        certificate = self._kept_certificate()
        revocations = MembershipState(self.swarm, self._folder, self._clock).revocations
        if certificate.peer != self._identity.peer or revocations.names(certificate):
            return False
        self._check(late_s=float("inf"))
        try:
            self._check(late_s=0.0)
        except NotAMember:
            try:
                await self.renew(())
            except NotAMember:
                return False
        return True

    async def _is_put_out(self, invite: Invite) -> bool:
        """Whether members refuse this node, which holds a certificate and comes with an invite that it has not used yet."""
        if invite.id.hex() == self._kept.invite or not self._kept.peers:
            return False
        try:
            await self.renew(())
        except NotAMember:
            return True
        except ShoalError:
            return False  # nobody could be asked
        return False

    def _begin_anew(self) -> None:
        """Have the next start be another node; raises NotAMember that asks for it, or for another key file."""
        if self._node.identity().peer != self._identity.peer:
            raise NotAMember(
                f"this node was put out of {self._folder.name!r}: a new invite needs a new key too (another --identity)"
            )
        self._node.retire()
        raise NotAMember(
            f"this node was put out of {self._folder.name!r}, or its invite was of no use. It has a new key now: "
            "give an unused invite once more"
        )

    def _kept_delegation(self) -> Delegation:
        try:
            return verify_delegation(self._kept.delegation)
        except NotAMember as error:
            raise UsageError(f"the membership in {self._node.path} is damaged: {error}") from error

    def _check(self, late_s: float) -> None:
        """Raises NotAMember for a kept certificate that ended so long ago, or is from the future."""
        verify_certificate(self._kept.certificate, self._kept.swarm, self._clock.wall(), late_s)

    def _kept_certificate(self) -> Certificate:
        """The present one, whatever the clock shows; raises UsageError for a damaged file."""
        try:
            return verify_certificate(self._kept.certificate, self._kept.swarm, MAX_TIME_S, float("inf"))
        except NotAMember as error:
            raise UsageError(f"the membership in {self._node.path} is damaged: {error}") from error

    async def _redeem(self, invite: Invite, data: bytes) -> None:
        if not self._clock.wall() < invite.expires_at:
            raise InviteError("the invite has expired: ask for a new one")
        try:
            answer = await self._ask(invite.ticket, Redeem(data))
        except NotAMember as error:
            raise NotAMember(
                f"{invite.redeemer[:8]} refuses this invite: another node has used it, or it was revoked, or it is not "
                f"for this swarm (this node is {self._identity.peer})"
            ) from error
        self._accept(PeerId(invite.swarm), answer, invite.ticket, invite.id.hex())

    async def _ask(self, ticket: Ticket, request: Redeem | Renew) -> tuple[Certified, bytes]:
        question: Question[Any, Certified] = REDEEM if isinstance(request, Redeem) else RENEW
        reply = await ask(
            self._dialler,
            (ticket.peer, ticket.addresses),
            question,
            request,
            deadline_s=ASK_S,
            max_payload_bytes=MAX_REVOCATIONS_BYTES,
        )
        return reply.message, reply.payload

    def _accept(
        self, swarm: PeerId, answer: tuple[Certified, bytes], giver: Ticket, invite: str = "", renewed: bool = False
    ) -> None:
        """Keep a certificate and the list that came with it; raises RecordError for what is of no use.

        That is not for the node to mend, as a refusal is: its own membership may be sound.
        """
        certified, revocations = answer
        name = giver.peer[:8]
        try:
            certificate = verify_certificate(certified.certificate, swarm, self._clock.wall())
        except NotAMember as error:
            raise RecordError(f"{name} gives a certificate that does not hold: {error}") from error
        if certificate.peer != self._identity.peer:
            raise RecordError(f"{name} gives a certificate of {certificate.peer[:8]}, not of this node")
        if renewed and not certificate.expires_at > self._kept_certificate().expires_at:
            raise RecordError(f"{name} gives a certificate that ends no later than the present one")
        self._keep_certificate(swarm, certified.certificate, (str(giver),), invite)
        if revocations:
            MembershipState(swarm, self._folder, self._clock).take(revocations)

    def _keep_certificate(self, swarm: PeerId, certificate: bytes, peers: tuple[str, ...], invite: str = "") -> None:
        kept = self._node.kept() or self._kept
        newest = {ticket.peer: str(ticket) for ticket in Ticket.sound((*reversed(kept.peers), *peers))}
        everybody = tuple(reversed(newest.values()))[:MAX_KEPT_PEERS]
        came_by = invite or kept.invite
        self._keep(StoredMembership(swarm, certificate, everybody, kept.delegation, kept.contacts, came_by))

    def _keep(self, kept: StoredMembership) -> None:
        self._kept = kept  # holds also where the file cannot be written
        self._node.keep(kept)
