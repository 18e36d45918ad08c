"""A server's side of the network: its transports, whom it knows, what dials and what answers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import msgspec

from shoal.clock import Clock
from shoal.server.channel_dispatcher import ChannelDispatcher
from shoal.server.gossip import Gossip, Notice
from shoal.server.hosting.peer_latency import PeerLatency
from shoal.server.server_config import ServerConfig
from shoal.server.sessions.redirector import Redirector
from shoal.swarm.directory.directory import Directory
from shoal.swarm.directory.records import RECORD_LIFETIME_S, ServerRecord, sign_record
from shoal.swarm.discovery.announcer import Announcer
from shoal.swarm.discovery.discovery_options import Discoveries
from shoal.swarm.discovery.ticket import Ticket
from shoal.swarm.identity import Identity
from shoal.swarm.membership.member import Member
from shoal.transport.channel import Transport
from shoal.transport.dialler import Dialler
from shoal.transport.local_node import listen_all, make_transports
from shoal.transport.token_bucket import TokenBucket
from shoal.types import PeerId

Wrap = Callable[[Transport, PeerId], Transport]


class Network:
    """`open`, then `listen`, then use the rest; `wrap` puts emulated links on transports."""

    def __init__(self, config: ServerConfig, notice: Notice, clock: Clock, wrap: Wrap | None) -> None:
        kept = Identity.load(config.identity) if config.identity else None
        self.member = Member(config.private, "server", clock, kept) if config.private is not None else None
        self.identity = self.member.identity if self.member is not None else kept or Identity.generate()
        self.directory = Directory(clock)
        self.dispatcher = ChannelDispatcher(self.identity.peer, self.directory)
        self.addresses: tuple[str, ...] = ()
        self.clock = clock
        self.throttle: TokenBucket | None = None
        if config.max_upload_bits_per_s is not None:
            self.throttle = TokenBucket(config.max_upload_bits_per_s / 8, clock)
        self._config = config
        self._notice = notice
        self._wrap = wrap or (lambda transport, me: transport)
        self._sequence = int(clock.wall() * 1000)

    async def open(self, stack: contextlib.AsyncExitStack) -> None:
        """Enter the private swarm, if it is one, and listen. Raises what membership and binding raise."""
        config, me = self._config, self.identity.peer
        made = make_transports(self.identity.key, config.listen, config.transport, config.discovery.iroh_relay)
        transports = [self._wrap(transport, me) for transport in made]
        for transport in transports:
            stack.push_async_callback(transport.close)
        if self.member is not None:
            transports = await self.member.enter(transports)
            self.member.guard(self.directory)
        self.dialler = Dialler(transports, clock=self.clock, only=config.transport)
        self.gossip = Gossip(me, self.directory, self.dialler, self._notice, self.clock)
        tickets = (*config.peers, *(self.member.tickets if self.member is not None else ()))
        self.gossip.tickets = [Ticket.parse(text) for text in tickets]
        self.peer_latency = PeerLatency(self.dialler, self.clock)
        self.redirector = Redirector(self.identity, self.dialler, self.clock)
        stack.push_async_callback(self.redirector.close)
        self.addresses = await listen_all(transports, self.dispatcher.handle)

    async def discover(self, stack: contextlib.AsyncExitStack, fingerprint: str) -> None:
        """What finds a first member when tickets do not, and keeps this server findable, as far as that was asked for."""
        me = self.identity.peer
        discoveries = Discoveries(self._config.discovery, fingerprint, self.clock)
        finder = discoveries.finder(self.directory, self.dialler, me)
        announcer = Announcer(discoveries, finder, lambda: self.directory.get(me), self._notice, self.clock)
        self.announcer = await stack.enter_async_context(announcer)

    async def join(self) -> None:
        """Exchange records with the members that are known, or look for one where that was asked for."""
        await self.gossip.join()
        if not self.gossip.others() and self._config.blocks is None:
            await self.announcer.look()

    def publish(self, record: ServerRecord) -> ServerRecord:
        """Sign and spread what this server says of itself, with its addresses, a new number and new times."""
        now = self.clock.wall()
        self._sequence = max(self._sequence + 1, int(now * 1000))
        stamped = msgspec.structs.replace(
            record,
            sequence=self._sequence,
            issued_at=now,
            expires_at=now + RECORD_LIFETIME_S,
            addresses=self.announcer.reachable(self.addresses),
            round_trips=self.peer_latency.round_trips,
        )
        proof = self.member.proof if self.member is not None else b""
        self.directory.add(sign_record(stamped, self.identity).data, proof=proof)
        return stamped
