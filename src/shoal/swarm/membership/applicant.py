"""A node that is to be in a private swarm: what it was given, and how it becomes a member."""

from __future__ import annotations

from collections.abc import Sequence

from shoal.clock import Clock
from shoal.errors import InviteError, UsageError
from shoal.swarm.identity import Identity
from shoal.swarm.membership.certification import Certification
from shoal.swarm.membership.credentials import parse_delegation, parse_invite
from shoal.swarm.membership.member import Member
from shoal.swarm.membership.member_transport import MemberTransport
from shoal.swarm.membership.membership_state import MembershipState
from shoal.swarm.membership.storage import PrivateSwarm, Role, SwarmFolder
from shoal.transport.channel import Transport
from shoal.transport.dialler import Dialler


class Applicant:
    """A node before it has shown that it is a member, with the key that it will do so by.

    Raises InviteError for an invite or delegation that does not parse, or whose name is taken here, UsageError for a name that
    stands for nothing here.
    """

    def __init__(self, private: PrivateSwarm, role: Role, clock: Clock, identity: Identity | None = None) -> None:
        self._invite = parse_invite(private.invite) if private.invite else None
        self._delegation = parse_delegation(private.delegation) if private.delegation else None
        name = private.name or (self._invite[0].name if self._invite is not None else "")
        if not name:
            raise UsageError("a private swarm is given by its name here, or by an invite")
        self._folder = SwarmFolder(name, private.home)
        if self._invite is not None and self._folder.tickets.is_file():
            raise InviteError(
                f"{name!r} is a swarm that this machine remembers already: give this one another name (--swarm)"
            )
        self._role: Role = role
        self._clock = clock
        self.identity = identity or self._known_identity()

    def _known_identity(self) -> Identity:
        """The node's key; none is made for a name that stands for nothing here."""
        if self._invite is None and not self._folder.path.exists():
            raise UsageError(f"there is no private swarm {self._folder.name!r} here: join it with --invite")
        return self._folder.node(self._role).identity()

    async def enter(self, transports: Sequence[Transport]) -> Member:
        """Become a member, or see that this node still is one; its transports have a gate before each of these.

        Raises what `Certification.obtain` raises, and InviteError for another node's delegation.
        """
        dialler = Dialler(transports, clock=self._clock)
        certification = Certification(self._folder, self._role, self.identity, dialler, self._clock)
        await certification.obtain(self._invite)
        if self._delegation is not None:
            certification.delegate(*self._delegation)
        redeemer = certification.redeemer()
        state = MembershipState(
            certification.swarm, self._folder, self._clock, certification.certificate, renews=redeemer is not None
        )
        gates = [MemberTransport(transport, state, redeemer) for transport in transports]
        return Member(self.identity.peer, self._folder, certification, state, gates, self._clock)
