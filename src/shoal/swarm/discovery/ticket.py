"""A ticket: one string that reaches one member of a swarm."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Iterable
from typing import Annotated

import msgspec
from msgspec import Meta

from shoal.errors import TicketError
from shoal.protocol.messages import Peer
from shoal.swarm.directory.records import MAX_ADDRESSES
from shoal.transport.address import Address

PREFIX = "shoal1-"
MAX_TICKET_CHARS = 2048


class Ticket(msgspec.Struct, frozen=True, array_like=True):
    """A member's id and where it can be dialled. It proves nothing: whoever answers there must have the member's key."""

    peer: Peer
    addresses: Annotated[tuple[Address, ...], Meta(min_length=1, max_length=MAX_ADDRESSES)]

    def __str__(self) -> str:
        body = msgspec.msgpack.encode((bytes.fromhex(self.peer), self.addresses))
        return PREFIX + base64.urlsafe_b64encode(body).decode("ascii").rstrip("=")

    @classmethod
    def sound(cls, texts: Iterable[str]) -> list[Ticket]:
        """Those of these texts that are tickets: what a file keeps may be spoilt, and others of it may be good."""
        found = []
        for text in texts:
            with contextlib.suppress(TicketError):
                found.append(cls.parse(text))
        return found

    @classmethod
    def parse(cls, text: str) -> Ticket:
        """The ticket in a string; raises TicketError for anything else."""
        if not isinstance(text, str):
            raise TicketError(f"a ticket is a text, not a {type(text).__name__}")
        text = text.strip()
        if not text.startswith(PREFIX) or len(text) > MAX_TICKET_CHARS:
            raise TicketError(
                f"a ticket starts with {PREFIX} and has at most {MAX_TICKET_CHARS} characters: {text[:40]!r}"
            )
        body = text[len(PREFIX) :]
        try:
            data = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
            peer, addresses = msgspec.msgpack.decode(data, type=tuple[bytes, tuple[str, ...]])
            return msgspec.convert((peer.hex(), addresses), cls)
        except (ValueError, msgspec.DecodeError) as error:
            raise TicketError(f"the ticket is damaged (is it complete?): {text[:40]!r}") from error
