"""A node's membership from its invite on: redeemed, kept, renewed, and followed as the list of who is out changes."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

import msgspec

from shoal.clock import Clock
from shoal.errors import InviteError, NetworkError, NotAMember, ShoalError, UsageError
from shoal.protocol.messages import MAX_REVOCATIONS_BYTES, REDEEM, RENEW, Certified, Question, Redeem, Renew
from shoal.swarm.directory.directory import Directory
from shoal.swarm.discovery.ticket import Ticket
from shoal.swarm.identity import Identity
from shoal.swarm.membership.certificate_issuer import CertificateIssuer, Issuer
from shoal.swarm.membership.credentials import (
    Certificate,
    Invite,
    parse_delegation,
    parse_invite,
    verify_certificate,
    verify_delegation,
)
from shoal.swarm.membership.member_transport import MemberTransport
from shoal.swarm.membership.membership_state import MembershipState
from shoal.swarm.membership.storage import PrivateSwarm, Role, StoredMembership, SwarmFolder
from shoal.transport.asking import ask
from shoal.transport.channel import Transport
from shoal.transport.dialler import Dialler
from shoal.types import PeerId

POLL_S = 1.0
"""How often a node looks after its certificate and at the list that other processes of the machine may have changed."""

RENEWAL_RETRY_S = 30.0
CLIENT_EXCHANGE_S = 15.0
"""How often a client exchanges with the swarm, so that it hears of revocations during long sessions."""

ASK_S = 10.0
"""How long a node that renews or redeems may take: one that is silent must not keep others from being asked."""

MAX_KEPT_PEERS = 8

MAX_CONTACTS = 4
"""Servers remembered, so that a node finds the swarm when the owner's server is away."""


class Member:
    """One node of a private swarm. `enter` makes it a member, `keep` keeps it one. Raises what the folder raises."""

    def __init__(self, private: PrivateSwarm, role: Role, clock: Clock, identity: Identity | None = None) -> None:
        self._invite = parse_invite(private.invite) if private.invite else None
        self._delegation = parse_delegation(private.delegation) if private.delegation else None
        name = private.name or (self._invite[0].name if self._invite is not None else "")
        if not name:
            raise UsageError("a private swarm is given by its name here, or by an invite")
        self.folder = SwarmFolder(name, private.home)
        self._role = role
        self._node = self.folder.node(role)
        self._clock = clock
        self.identity = identity or self._known_identity()
        self._owner: Issuer | None = None
        self._kept = StoredMembership("", b"")
        self._gates: list[MemberTransport] = []
        self._renew_at = 0.0

    def _known_identity(self) -> Identity:
        """The node's key; none is made for a name that stands for nothing here."""
        if self._invite is None and not self.folder.path.exists():
            raise UsageError(f"there is no private swarm {self.folder.name!r} here: join it with --invite")
        return self._node.identity()

    @property
    def tickets(self) -> list[str]:
        """Members to find the swarm by: those who renew certificates, and this machine's own server."""
        texts = [self.folder.node("server").ticket(), *self._kept.peers, *self._kept.contacts]
        return [text for text in dict.fromkeys(texts) if text and Ticket.parse(text).peer != self.identity.peer]

    async def enter(self, transports: Sequence[Transport]) -> list[Transport]:
        """Become a member, or see that this node still is one; returns the transports with a gate before each.

        Raises InviteError for an invite that is no use, NotAMember when the redeemer refuses, NetworkError when it is out
        of reach, UsageError when there is neither an invite nor a certificate.
        """
        self._dialler = Dialler(transports, clock=self._clock)
        key = self.folder.owner()
        if key is not None:
            self._owner = Issuer(key.peer, key)
            self._keep_certificate(key.peer, self._owner.certify(self.identity.peer, self._clock.wall()), ())
        else:
            await self._join()
        self._take_delegation()
        self.state = state = MembershipState(PeerId(self._kept.swarm), self.folder, self._clock)
        state.certificate = self._kept.certificate
        redeemer = self._redeemer()
        state.renews = redeemer is not None
        self._gates = [MemberTransport(transport, state, redeemer) for transport in transports]
        return list(self._gates)

    async def _join(self) -> None:
        kept = self._node.kept()
        if kept is not None:
            if self._invite is not None and self._invite[0].swarm != kept.swarm:
                raise InviteError(f"{self.folder.name!r} is another swarm here already: give this one a name (--swarm)")
            self._kept = kept
            if await self._still_member():
                return
        if self._invite is None and kept is None:
            raise UsageError(f"this node has not joined {self.folder.name!r} yet: give an invite (--invite)")
        if self._invite is None:
            raise NotAMember(f"this node is out of {self.folder.name!r}, or was away too long: ask for a new invite")
        await self._redeem(*self._invite)

    async def _still_member(self) -> bool:
        """Whether the kept certificate holds, or could be renewed; raises NetworkError when nobody could be asked."""
        certificate = self._certificate(float("inf"))
        revocations = MembershipState(PeerId(self._kept.swarm), self.folder, self._clock).revocations
        if certificate.peer != self.identity.peer or revocations.names(certificate):
            return False
        try:
            verify_certificate(self._kept.certificate, self._kept.swarm, self._clock.wall())
        except NotAMember:
            try:
                await self._renew(())
            except NotAMember:
                return False
        return True

    def _certificate(self, late_s: float) -> Certificate:
        return verify_certificate(self._kept.certificate, self._kept.swarm, self._clock.wall(), late_s)

    async def _redeem(self, invite: Invite, data: bytes) -> None:
        if not self._clock.wall() < invite.expires_at:
            raise InviteError("the invite has expired: ask for a new one")
        try:
            answer = await self._ask(invite.ticket, Redeem(data))
        except NotAMember as error:
            raise NotAMember(
                f"{invite.redeemer[:8]} refuses this invite: another node has used it, or it was revoked, or it is not "
                f"for this swarm (this node is {self.identity.peer})"
            ) from error
        self._accept(PeerId(invite.swarm), answer, (str(invite.ticket),))

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

    def _accept(self, swarm: PeerId, answer: tuple[Certified, bytes], peers: tuple[str, ...]) -> None:
        """Keep a certificate and the list that came with it; raises NotAMember for what the swarm has not signed."""
        certified, revocations = answer
        certificate = verify_certificate(certified.certificate, swarm, self._clock.wall())
        if certificate.peer != self.identity.peer:
            raise NotAMember(f"a certificate for {certificate.peer[:8]} came, not for this node")
        self._keep_certificate(swarm, certified.certificate, peers)
        if revocations:
            MembershipState(swarm, self.folder, self._clock).take(revocations)

    def _keep_certificate(self, swarm: PeerId, certificate: bytes, peers: tuple[str, ...]) -> None:
        kept = self._node.kept() or self._kept
        newest = {Ticket.parse(text).peer: text for text in (*reversed(kept.peers), *peers)}
        everybody = tuple(reversed(newest.values()))[:MAX_KEPT_PEERS]
        self._kept = StoredMembership(swarm, certificate, everybody, kept.delegation, kept.contacts)
        self._node.keep(self._kept)

    async def _renew(self, peers: Iterable[Ticket]) -> None:
        """The next certificate, from the first of these or of the kept nodes that gives one; raises the last refusal."""
        error: ShoalError = NotAMember("nobody is known who renews certificates")
        for ticket in [*peers, *map(Ticket.parse, self._kept.peers)]:
            try:
                answer = await self._ask(ticket, Renew(self._kept.certificate))
                self._accept(PeerId(self._kept.swarm), answer, (str(ticket),))
                return
            except ShoalError as caught:
                error = caught
        raise error

    def _take_delegation(self) -> None:
        if self._delegation is None:
            return
        delegation, data = self._delegation
        if (delegation.swarm, delegation.peer) != (self._kept.swarm, self.identity.peer):
            raise InviteError(f"the delegation is for node {delegation.peer[:8]}, not for {self.identity.peer[:8]}")
        self._kept = msgspec.structs.replace(self._kept, delegation=data)
        self._node.keep(self._kept)

    def _redeemer(self) -> CertificateIssuer | None:
        issuer = self._owner
        if issuer is None and self._kept.delegation:
            until = verify_delegation(self._kept.delegation).expires_at
            issuer = Issuer(PeerId(self._kept.swarm), self.identity, self._kept.delegation, until)
        if issuer is None or self._role != "server":
            return None
        return CertificateIssuer(self.identity.peer, issuer, self._node, self._clock)

    def guard(self, directory: Directory) -> None:
        """Keep servers that are not members out of a directory."""
        directory.refuses = self.state.is_revoked
        directory.certifies = self.state.certifies

    def remember(self, directory: Directory) -> None:
        """Keep the tickets of a few servers: those kept before as long as they are up, then those nearest by id."""
        mine = int(self.identity.peer, 16)
        met = {int(signed.record.peer, 16) ^ mine: signed.record for signed in directory.records()}
        met.pop(0, None)
        tickets = [str(Ticket(met[distance].peer, met[distance].addresses)) for distance in sorted(met)]
        up = [text for text in self._kept.contacts if text in tickets]
        contacts = tuple(dict.fromkeys([*up, *tickets]))[:MAX_CONTACTS]
        if contacts and contacts != self._kept.contacts:
            self._kept = msgspec.structs.replace(self._kept, contacts=contacts)
            self._node.keep(self._kept)

    def listening(self, ticket: str) -> None:
        """Note where this node can be reached: invites say so."""
        self._node.keep_ticket(ticket)

    @property
    def proof(self) -> bytes:
        """This node's certificate, which goes with its record."""
        return self.state.certificate

    def is_revoked(self, peer: PeerId | None) -> bool:
        """Whether this node is out."""
        return peer is not None and self.state.is_revoked(peer)

    async def keep(
        self, directory: Directory, spread: Callable[[], Awaitable[None]], every_s: float = float("inf")
    ) -> None:
        """Renew the certificate at its half-life and follow the list, until cancelled.

        `spread` exchanges with some members: when the list has changed, and every so many seconds. A file that is damaged
        or cannot be written ends nothing: what this node knows goes on to hold.
        """
        number, spread_at = self.state.revocations.number, self._clock.monotonic() + every_s
        while True:
            with contextlib.suppress(UsageError):
                self.remember(directory)
            await self._clock.sleep(POLL_S)
            with contextlib.suppress(UsageError):
                self.state.poll()
            for gate in self._gates:
                gate.sweep()
            await self._renew_if_due(directory)
            if self.state.revocations.number != number or self._clock.monotonic() >= spread_at:
                number, spread_at = self.state.revocations.number, self._clock.monotonic() + every_s
                with contextlib.suppress(NetworkError):  # the next time, or somebody else's
                    await spread()

    async def _renew_if_due(self, directory: Directory) -> None:
        certificate, now = self._certificate(float("inf")), self._clock.wall()
        if now < max(self._renew_at, (certificate.issued_at + certificate.expires_at) / 2):
            return
        self._renew_at = now + RENEWAL_RETRY_S
        with contextlib.suppress(NetworkError, NotAMember, UsageError):  # tried again until the window ends
            if self._owner is not None:
                self._keep_certificate(self._owner.swarm, self._owner.certify(self.identity.peer, now), ())
            else:
                await self._renew(self._renewers(directory))
        self.state.certificate = self._kept.certificate

    def _renewers(self, directory: Directory) -> list[Ticket]:
        met = (directory.get(peer) for peer, known in self.state.known.items() if known.renews)
        return [Ticket(signed.record.peer, signed.record.addresses) for signed in met if signed is not None]
