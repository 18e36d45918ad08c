"""How often a server dials because its clients say so."""

from __future__ import annotations

from shoal.clock import Clock
from shoal.errors import ServerFull
from shoal.transport.token_bucket import TokenBucket, TokenBuckets
from shoal.types import PeerId

DIALS_AT_ONCE = 600
DIALS_PER_S = 10
"""Dials that one client's redirects may cause at once, and how many more each second, redials included. Beyond that the
client's links go through the client."""

SOURCE_CLIENTS = 4
"""As many clients' worth of dials for one source, since keys are free, and many clients may share an address."""

SERVER_SOURCES = 4
"""As many sources' worth of dials for all of them."""

SOURCE_DIALS = SOURCE_CLIENTS * DIALS_AT_ONCE
MAX_DIALS = SERVER_SOURCES * SOURCE_DIALS

FAILED_AT_ONCE, FAILED_PER_S = 60, 2
"""Of these, dials that are not answered, for one source, and SERVER_SOURCES times as many for all."""

MAX_SOURCES = 4096
"""Clients and sources whose dials are counted; beyond that the one whose last dial is the oldest is forgotten."""


class TooManyDials(ServerFull):
    """This server dials no more for a client at this moment."""


class DialLimits:
    """What was used comes back with time, and what a dial has used that is answered comes back at once."""

    def __init__(self, clock: Clock) -> None:
        def each(share: int, per_s: int, at_once: int) -> TokenBuckets[str]:
            return TokenBuckets(share * per_s, share * at_once, clock, MAX_SOURCES)

        def all_of_them(share: int, per_s: int, at_once: int) -> TokenBucket:
            return TokenBucket(share * per_s, share * at_once, clock)

        self._clients = each(1, DIALS_PER_S, DIALS_AT_ONCE)
        self._sources = each(SOURCE_CLIENTS, DIALS_PER_S, DIALS_AT_ONCE)
        self._server = all_of_them(SOURCE_CLIENTS * SERVER_SOURCES, DIALS_PER_S, DIALS_AT_ONCE)
        self._failed = each(1, FAILED_PER_S, FAILED_AT_ONCE)
        self._server_failed = all_of_them(SERVER_SOURCES, FAILED_PER_S, FAILED_AT_ONCE)

    def begin(self, client: PeerId, source: str) -> None:
        """Count a dial for a client, as one that is not answered; raises TooManyDials."""
        limits = {
            f"{DIALS_AT_ONCE} dials at once for one client": self._clients.of(client),
            "dials at once for the clients of one address": self._sources.of(source),
            "dials at once for all clients": self._server,
            f"{FAILED_AT_ONCE} dials without an answer for the clients of one address": self._failed.of(source),
            "dials without an answer for all clients": self._server_failed,
        }
        for what, bucket in limits.items():
            if bucket.wait_s() > 0:
                raise TooManyDials(f"more than {what}" if what[0].isdigit() else f"too many {what}", bucket.wait_s())
        for bucket in limits.values():
            bucket.try_take()

    @property
    def made(self) -> int:
        """Dials for all clients that count, of MAX_DIALS."""
        return round(self._server.used)

    def made_for(self, source: str) -> int:
        """Those for the clients of this source, of SOURCE_DIALS."""
        return round(self._sources.used(source))

    def answered(self, source: str) -> None:
        """A dial that was counted for a client of this source has been answered by the node that was dialled."""
        for bucket in (self._failed.of(source), self._server_failed):
            bucket.give_back()
