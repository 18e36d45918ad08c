"""A member of a private swarm: its certificate is renewed, and the list of who is out followed as it changes."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Sequence

from shoal.clock import Clock
from shoal.errors import NetworkError, ShoalError, UsageError
from shoal.swarm.directory.directory import Directory
from shoal.swarm.discovery.ticket import Ticket
from shoal.swarm.membership.certification import Certification
from shoal.swarm.membership.member_transport import MemberTransport
from shoal.swarm.membership.membership_state import MembershipState
from shoal.swarm.membership.storage import SwarmFolder
from shoal.transport.channel import Transport
from shoal.types import PeerId

POLL_S = 1.0
"""How often a node looks after its certificate and at the list that other processes of the machine may have changed."""

RENEWAL_RETRY_S = 30.0
CLIENT_EXCHANGE_S = 15.0
"""How often a client exchanges with the swarm, so that it hears of revocations during long sessions."""

MAX_CONTACTS = 4
"""Servers remembered, so that a node finds the swarm when the owner's server is away."""


class Member:
    """The node `me` inside a private swarm; `Applicant.enter` makes one, `keep` keeps it one."""

    def __init__(
        self,
        me: PeerId,
        folder: SwarmFolder,
        certification: Certification,
        state: MembershipState,
        gates: Sequence[MemberTransport],
        clock: Clock,
    ) -> None:
        self._me = me
        self._folder = folder
        self._certification = certification
        self.state = state
        self._gates = gates
        self._clock = clock
        self._renew_at = 0.0

    @property
    def swarm_name(self) -> str:
        """The name under which the swarm is kept here."""
        return self._folder.name

    @property
    def transports(self) -> list[Transport]:
        """What members, and they alone, are reached by and answered on."""
        return list(self._gates)

    @property
    def tickets(self) -> list[str]:
        """Members to find the swarm by: those who renew certificates, and this machine's own server."""
        kept = self._certification
        texts = [self._folder.node("server").ticket(), *kept.peers, *kept.contacts]
        return [str(ticket) for ticket in dict.fromkeys(Ticket.sound(texts)) if ticket.peer != self._me]

    def guard(self, directory: Directory) -> None:
        """Keep servers that are not members out of a directory."""
        directory.admit_members_only(self.state.certifies, self.state.is_revoked)

    def remember(self, directory: Directory) -> None:
        """Keep the tickets of a few servers: those kept before as long as they are up, then those nearest by id."""
        mine = int(self._me, 16)
        met = {int(signed.record.peer, 16) ^ mine: signed.record for signed in directory.records()}
        met.pop(0, None)
        tickets = [str(Ticket(met[distance].peer, met[distance].addresses)) for distance in sorted(met)]
        up = [text for text in self._certification.contacts if text in tickets]
        contacts = tuple(dict.fromkeys([*up, *tickets]))[:MAX_CONTACTS]
        if contacts:
            self._certification.remember(contacts)

    def listening(self, ticket: str) -> None:
        """Note where this node can be reached: invites say so."""
        self._folder.node("server").keep_ticket(ticket)

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
        now = self._clock.wall()
        if now < max(self._renew_at, self._certification.renewal_due_at):
            return
        self._renew_at = now + RENEWAL_RETRY_S
        with contextlib.suppress(ShoalError):  # whatever others answer, it is tried again until the window ends
            await self._certification.renew(self._renewers(directory))
        self.state.renewed(self._certification.certificate)

    def _renewers(self, directory: Directory) -> list[Ticket]:
        met = (directory.get(peer) for peer, known in self.state.known.items() if known.renews)
        return [Ticket(signed.record.peer, signed.record.addresses) for signed in met if signed is not None]
