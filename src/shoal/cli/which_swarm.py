"""Which swarm a client's command means: the one that is named, or the only one that this machine knows."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from shoal.cli.output import private
from shoal.errors import UsageError

if TYPE_CHECKING:
    from shoal.swarm.membership.storage import PrivateSwarm

HOW_TO_JOIN = "give a member's ticket (--peers, $SHOAL_PEERS), or remember a swarm (shoal join TICKET --as NAME)"


class ChosenSwarm(NamedTuple):
    """The tickets that lead to it, and the private swarm if it is one; `name` of one that is remembered."""

    peers: tuple[str, ...]
    private: PrivateSwarm | None
    name: str = ""


def chosen_swarm(peers: tuple[str, ...], swarm: str, invite: str, found_otherwise: bool = False) -> ChosenSwarm:
    """What the options mean. Without any, the only swarm of this machine; raises UsageError for none, and for several.

    `found_otherwise`: a discovery looks for it, or a saved reply knows the way.
    """
    from shoal.swarm.discovery.address_book import AddressBook
    from shoal.swarm.membership.storage import SwarmFolder

    book = AddressBook()
    name = swarm
    if not (name or peers or invite or found_otherwise):
        names = book.names()
        if not names:
            raise UsageError(f"no swarm is known: {HOW_TO_JOIN}")
        if len(names) > 1:
            raise UsageError(f"several swarms are known, {', '.join(names)}: choose one (--swarm NAME)")
        name = names[0]
    if name and not invite and not SwarmFolder(name).path.exists():
        known = f"there are {', '.join(names)}; " if (names := book.names()) else ""
        raise UsageError(f"no swarm {name!r} is known here; {known}{HOW_TO_JOIN}, or give an invite (--invite)")
    if name and not invite and (tickets := book.tickets(name)):
        return ChosenSwarm(peers or tickets, None, "" if peers else name)
    return ChosenSwarm(peers, private(name, invite))
