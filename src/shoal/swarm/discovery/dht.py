"""Members anywhere, through the BitTorrent Mainline DHT (BEP 5).

Members announce the port of their hello under sha1("shoal/1/" + name), where the name is the model's fingerprint or one
that people agreed on. The DHT says where somebody announced, not who: contacts are hello addresses.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import random
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from shoal.clock import SYSTEM_CLOCK, Clock
from shoal.errors import NetworkError, UsageError
from shoal.swarm.discovery.discovery import HELLO_SCHEME, Contact, Presence
from shoal.swarm.discovery.libtorrent_session import LibtorrentSession
from shoal.tasks import first_done
from shoal.transport.address import join_host_port

BOOTSTRAP_S = 10.0
"""How long to wait for a first other node."""

BOOTSTRAP_POLL_S = 0.05
LOOKUP_S = 5.0
QUIET_S = 1.0
"""A lookup ends this long after the last reply; libtorrent does not say when its search is over."""

MAX_CONTACTS = 256
MAX_REPLIES = 64
MAX_REPLY_PEERS = 100
MAX_NAME_CHARS = 128

_PREFIX = "shoal/1/"


def swarm_key(name: str) -> bytes:
    """The 20-byte DHT key of a swarm's public name; raises UsageError for an empty or overlong one."""
    if not name or len(name) > MAX_NAME_CHARS:
        raise UsageError(f"a swarm's name has 1 to {MAX_NAME_CHARS} characters")
    return hashlib.sha1((_PREFIX + name).encode(), usedforsecurity=False).digest()


class DhtDiscovery:
    """Announces and looks up one swarm's name. `choose` orders the peers of a reply, which anybody may have invented."""

    name = "DHT"

    def __init__(
        self,
        engine: LibtorrentSession,
        swarm_name: str,
        choose: random.Random | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._engine = engine
        self._key = swarm_key(swarm_name)
        self._choose = choose or random.Random()
        self._clock = clock

    async def announce(self, presence: Presence) -> None:
        """Discovery: nodes near the key keep the address that they see this come from, with the hello's port, for 30 min.

        Returns when the announcement is under way. Raises NetworkError when no other node is known, UsageError when the
        port is taken.
        """
        await self._joined()
        self._engine.open().dht_announce(self._hash(), presence.hello_port, 0)

    async def find(self) -> AsyncGenerator[Contact, None]:
        """Discovery: ask again each QUIET_S until somebody is known, for LOOKUP_S at most."""
        await self._joined()
        replies = Replies(self._choose, allow_private=bool(self._engine.options.nodes))

        def take(alert: Any) -> None:
            if alert.info_hash.to_bytes() == self._key:
                replies.take(alert.peers())

        self._engine.on("dht_get_peers_reply_alert", take)
        try:
            deadline = self._clock.monotonic() + LOOKUP_S
            while self._clock.monotonic() < deadline:
                if not replies.count:
                    self._engine.open().dht_get_peers(self._hash())
                if not await self._news(replies) and replies.count:
                    return
                while (contact := replies.next()) is not None:
                    yield contact
        finally:
            self._engine.off("dht_get_peers_reply_alert", take)

    async def _news(self, replies: Replies) -> bool:
        """Whether another reply comes within QUIET_S."""
        await first_done(self._clock.sleep(QUIET_S), replies.came.wait())
        came = replies.came.is_set()
        replies.came.clear()
        return came

    def _hash(self) -> Any:
        return self._engine.library.sha1_hash(self._key)

    async def _joined(self) -> None:
        """Wait until the routing table has somebody: what an empty one is told or asked goes nowhere, without a word.

        Raises NetworkError when nobody comes, UsageError at once when this node has no socket.
        """
        session = self._engine.open()
        nodes = 0

        def count(alert: Any) -> None:
            nonlocal nodes
            nodes = sum(bucket["num_nodes"] for bucket in alert.routing_table)

        self._engine.on("dht_stats_alert", count)
        try:
            deadline = self._clock.monotonic() + BOOTSTRAP_S
            while not nodes and not self._engine.problem and self._clock.monotonic() < deadline:
                session.post_dht_stats()
                await self._clock.sleep(BOOTSTRAP_POLL_S)
        finally:
            self._engine.off("dht_stats_alert", count)
        if not nodes and self._engine.problem:
            raise UsageError(self._engine.problem)
        if not nodes:
            raise NetworkError("no node of the DHT answers")

    async def close(self) -> None:
        """Discovery: leave the DHT. What was announced is forgotten there after half an hour."""
        await self._engine.close()


class Replies:
    """Peers out of replies, one of each reply in turn, so that no node crowds out what the others say."""

    def __init__(self, choose: random.Random, allow_private: bool) -> None:
        self.came = asyncio.Event()
        self.count = 0
        self._choose = choose
        self._allow_private = allow_private
        self._seen: set[tuple[str, int]] = set()
        self._waiting: deque[list[tuple[str, int]]] = deque()

    def take(self, peers: Sequence[tuple[str, int]]) -> None:
        """One node's reply."""
        if self.count < MAX_REPLIES:
            self.count += 1
            mixed = list(peers[:MAX_REPLY_PEERS])
            self._choose.shuffle(mixed)
            self._waiting.append(mixed)
            self.came.set()

    def next(self) -> Contact | None:
        """The next peer that was not named before and may be asked; None when there is none, or were too many."""
        while self._waiting and len(self._seen) < MAX_CONTACTS:
            reply = self._waiting.popleft()
            if not reply:
                continue
            peer = reply.pop()
            self._waiting.append(reply)
            if peer not in self._seen and askable(*peer, allow_private=self._allow_private):
                self._seen.add(peer)
                return Contact(None, (f"{HELLO_SCHEME}://{join_host_port(*peer)}",))
        return None


def askable(host: str, port: int, *, allow_private: bool) -> bool:
    """Whether to connect to what a stranger named: in the public DHT, public unicast addresses only."""
    address = ipaddress.ip_address(host)
    if address.is_multicast or address.is_unspecified or port < 1:
        return False
    return allow_private or address.is_global
