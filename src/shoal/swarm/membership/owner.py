"""What a private swarm's owner does: invite, delegate, revoke. Works on the owner's folder alone, without a network."""

from __future__ import annotations

import logging
import secrets
from pathlib import Path
from typing import NamedTuple

import msgspec

from shoal.clock import Clock
from shoal.errors import InviteError, NotAMember, TicketError, UsageError
from shoal.protocol.messages import SECRET_BYTES, Peer
from shoal.swarm.discovery.ticket import Ticket
from shoal.swarm.identity import Identity
from shoal.swarm.membership.credentials import (
    MAX_REVOKED,
    Delegation,
    Invite,
    Revocations,
    parse_invite,
    sign_delegation,
    sign_invite,
    sign_revocations,
    verify_revocations,
)
from shoal.swarm.membership.storage import SwarmFolder, write

log = logging.getLogger("shoal.swarm")

MIN_PREFIX_CHARS = 8
"""How much of an id has to be given."""


class Issued(NamedTuple):
    """An invite as the owner sees it; `node` has used it, as far as this machine knows."""

    invite: Invite
    node: str | None


class Owner:
    """A swarm's owner at work; raises UsageError where the owner's key is not."""

    def __init__(self, folder: SwarmFolder, clock: Clock) -> None:
        key = folder.owner()
        if key is None:
            raise UsageError(f"{folder.path} has no owner's key: this is not the machine where the swarm was made")
        self.key: Identity = key
        self._folder = folder
        self._clock = clock

    def invite(self, expires_s: float, redeemer: Ticket | None = None) -> str:
        """One string that lets one node in, at `redeemer`: the owner's own server unless given.

        Raises UsageError when the owner's server has never run, so that nobody knows where it can be reached.
        """
        if redeemer is None:
            text = self._folder.node("server").ticket()
            if not text:
                raise UsageError(
                    f"start the owner's server first (shoal serve MODEL --swarm {self._folder.name}): "
                    "an invite says where it can be redeemed"
                )
            redeemer = self._own_server(text)
        invite = Invite(
            swarm=self.key.peer,
            id=secrets.token_bytes(SECRET_BYTES),
            redeemer=redeemer.peer,
            addresses=redeemer.addresses,
            expires_at=self._clock.wall() + expires_s,
            name=self._folder.name,
        )
        text = sign_invite(invite, self.key)
        write(self._folder.path / "invites" / invite.id.hex(), text.encode("ascii"))
        return text

    def _own_server(self, text: str) -> Ticket:
        try:
            return Ticket.parse(text)
        except TicketError as error:
            raise UsageError(
                f"the ticket in {self._folder.path / 'server'} is damaged: start the server again"
            ) from error

    def delegate(self, node: str, expires_s: float) -> str:
        """One string that lets this node redeem invites that name it, and renew certificates."""
        return sign_delegation(Delegation(self.key.peer, _node(node), self._clock.wall() + expires_s), self.key)

    def issued(self) -> list[Issued]:
        """All invites, in the order in which they expire. A file that was spoilt is told in the log, and keeps from nothing."""
        used = self._folder.node("server").redeemed()
        files = (self._folder.path / "invites").glob("[0-9a-f]" * 2 * SECRET_BYTES)
        invites = [invite for path in files if (invite := _kept(path)) is not None]
        return [Issued(one, used.get(one.id.hex())) for one in sorted(invites, key=lambda one: one.expires_at)]

    def revocations(self) -> Revocations:
        """The present list; raises UsageError for a damaged file, since the next list has all that this one names."""
        data = self._folder.revocations()
        try:
            return verify_revocations(data, self.key.peer) if data else Revocations(self.key.peer, 0)
        except NotAMember as error:
            text = f"the revocation list in {self._folder.path} is damaged: {error}. Any member's server has a copy"
            raise UsageError(text) from error

    def revoke(self, text: str) -> Revocations:
        """The next list, with a node or an invite (and whoever came by it) added; kept, for a running node to find.

        Raises UsageError for an id that is none or too short a part of one, and when the list is full.
        """
        held = self.revocations()
        what = self._resolve(text)
        if what == self.key.peer:
            raise UsageError("that is the swarm's own id: everybody would be out")
        nodes, invites = held.nodes, held.invites
        if len(what) == 2 * SECRET_BYTES:
            invites |= {bytes.fromhex(what)}
        else:
            nodes |= {what}
        if max(len(nodes), len(invites)) > MAX_REVOKED:
            raise UsageError(f"a list holds {MAX_REVOKED} nodes and as many invites: time for a new swarm")
        revocations = Revocations(self.key.peer, held.number + 1, nodes, invites)
        self._folder.keep_revocations(sign_revocations(revocations, self.key))
        return revocations

    def _resolve(self, text: str) -> str:
        """A whole id from a part of it that is unique among those known here."""
        text = text.strip().lower()
        if len(text) in (64, 2 * SECRET_BYTES) and set(text) <= set("0123456789abcdef"):
            return text
        issued = self.issued()
        known = {one.invite.id.hex() for one in issued} | {one.node for one in issued if one.node is not None}
        found = [one for one in known if len(text) >= MIN_PREFIX_CHARS and one.startswith(text)]
        if len(found) != 1:
            raise UsageError(
                f"{text!r} is neither a node id (64 hexadecimal digits) nor an invite's (32), nor the beginning "
                f"({MIN_PREFIX_CHARS} digits or more) of just one that is known here"
            )
        return found[0]


def _kept(path: Path) -> Invite | None:
    """An invite that was written down."""
    try:
        return parse_invite(path.read_text("ascii", "replace"))[0]
    except (OSError, InviteError) as error:
        log.warning("%s cannot be read: %s", path, error)
        return None


def _node(text: str) -> str:
    """A node id as given, or the one in a ticket; raises UsageError."""
    text = text.strip()
    try:
        return msgspec.convert(text, Peer)
    except msgspec.ValidationError:
        return Ticket.parse(text).peer
