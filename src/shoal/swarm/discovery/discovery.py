"""What finds a first member of a swarm; record exchange with that member does the rest."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

import msgspec

from shoal.types import PeerId

HELLO_SCHEME = "hello"
"""Of addresses that answer with a record (discovery/hello.py) and are no transport's."""


class Contact(msgspec.Struct, frozen=True):
    """Where a member may be. Without `peer` the addresses are hello addresses and it is not known yet who answers there."""

    peer: PeerId | None
    addresses: tuple[str, ...]


class Presence(msgspec.Struct, frozen=True):
    """What a member tells about itself; `hello_port` is the port, as others see it, that answers with its record."""

    peer: PeerId
    fingerprint: str
    addresses: tuple[str, ...]
    hello_port: int


class Discovery(Protocol):
    """A place where members leave word and are looked for."""

    @property
    def name(self) -> str:
        """For messages: "LAN" or "DHT"."""
        ...

    async def announce(self, presence: Presence) -> None:
        """Leave word, or renew it. Raises NetworkError or UsageError when that fails."""
        ...

    def find(self) -> AsyncGenerator[Contact, None]:
        """Contacts as they turn up, none twice; ends when no more can be expected. Anybody may have left them.

        Raises NetworkError or UsageError when looking fails.
        """
        ...

    async def close(self) -> None:
        """Withdraw what was announced, where that is possible, and let go. Closing twice is harmless."""
        ...
