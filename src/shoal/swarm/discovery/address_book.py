"""Swarms that this machine remembers: a name of the user's, and tickets of a few members.

A file for each in $SHOAL_HOME/swarms/NAME/tickets, beside those of private swarms. No ticket is a secret.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from shoal.errors import UsageError
from shoal.swarm.directory.records import ServerRecord
from shoal.swarm.discovery.ticket import Ticket
from shoal.swarm.membership.storage import SwarmFolder, default_home, write

MAX_TICKETS = 4
"""Kept of one swarm: the newest ways to it, so that it is found when the first member has gone."""


class AddressBook:
    """The swarms of this machine by their names; `home` replaces $SHOAL_HOME. Raises UsageError for what cannot be a name."""

    def __init__(self, home: Path | None = None) -> None:
        self._home = home or default_home()

    def tickets(self, name: str) -> tuple[str, ...]:
        """Ways to a swarm; none for a name that stands for nothing here, or for a private swarm.

        Raises UsageError for a file that was spoilt; what is left of one is taken.
        """
        path = SwarmFolder(name, self._home).tickets
        try:
            lines = path.read_text("ascii").split()
        except FileNotFoundError:
            return ()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{path} cannot be read: {error}") from error
        tickets = tuple(map(str, Ticket.sound(lines)))
        if not tickets:
            raise UsageError(f"{path} holds no ticket any more: join the swarm again (shoal join TICKET --as {name})")
        return tickets

    def names(self) -> list[str]:
        """All that are remembered, and the private swarms that a client on this machine belongs to."""
        found = []
        for folder in sorted((self._home / "swarms").glob("*")):
            if (folder / "tickets").is_file() or (folder / "client" / "member.json").is_file():
                found.append(folder.name)
        return found

    def remember(self, name: str, tickets: Iterable[str]) -> None:
        """Keep these ways to a swarm, the best first; raises UsageError for the name of a private swarm."""
        folder = SwarmFolder(name, self._home)
        if folder.path.exists() and not folder.tickets.is_file():
            raise UsageError(f"{name!r} is a private swarm here already: give this one another name (--as)")
        kept = list(dict.fromkeys(tickets))[:MAX_TICKETS]
        write(folder.tickets, "".join(f"{ticket}\n" for ticket in kept).encode("ascii"))

    def refresh(self, name: str, tickets: Sequence[str], met: Iterable[ServerRecord]) -> None:
        """Keep the tickets that were used and those of members that were met."""
        known = {Ticket.parse(one).peer: one for one in tickets}
        new = [record for record in met if record.addresses and record.peer not in known]
        self.remember(name, [*known.values(), *(str(Ticket(one.peer, one.addresses)) for one in new)])
