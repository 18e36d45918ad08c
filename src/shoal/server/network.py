"""A server's side of the network: its transports, whom it knows, what dials and what answers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from shoal.clock import Clock
from shoal.server.accounts import Accounts
from shoal.server.channel_dispatcher import ChannelDispatcher
from shoal.server.gossip import Gossip, Notice
from shoal.server.hosting.peer_latency import PeerLatency
from shoal.server.serve_options import ServeOptions
from shoal.server.sessions.redirector import Redirector
from shoal.swarm.directory.directory import Directory
from shoal.swarm.directory.records import RECORD_LIFETIME_S, ServerRecord, sign_record
from shoal.swarm.discovery.announcer import Announcer
from shoal.swarm.discovery.discovery_options import Discoveries
from shoal.swarm.discovery.ticket import Ticket
from shoal.swarm.identity import Identity
from shoal.swarm.membership.applicant import Applicant
from shoal.swarm.membership.member import Member
from shoal.transport.address import numeric
from shoal.transport.channel import Transport
from shoal.transport.dialler import Dialler
from shoal.transport.local_node import listen_all, make_transports
from shoal.transport.token_bucket import TokenBucket
from shoal.types import PeerId

UPLOAD_BURST_S = 0.1
"""A throttled upload may save up as many seconds of its rate."""

Wrap = Callable[[Transport, PeerId], Transport]


class NodeCredentials(NamedTuple):
    """The key that names this node, and what it enters a private swarm with, if it is to be in one."""

    identity: Identity
    applicant: Applicant | None


class OpenedNode(NamedTuple):
    """This node on its transports, which are those of its private swarm where it is in one."""

    identity: Identity
    member: Member | None
    transports: Sequence[Transport]


def node_credentials(config: ServeOptions, clock: Clock) -> NodeCredentials:
    """Those of the identity file or of the private swarm; a fresh key without either. Raises UsageError."""
    kept = Identity.load(config.identity) if config.identity else None
    if config.private is not None:
        applicant = Applicant(config.private, "server", clock, kept)
        return NodeCredentials(applicant.identity, applicant)
    return NodeCredentials(kept or Identity.generate(), None)


async def open_node(
    config: ServeOptions, credentials: NodeCredentials, wrap: Wrap | None, stack: contextlib.AsyncExitStack
) -> OpenedNode:
    """The node on its transports, which `stack` closes. Raises what `Applicant.enter` raises."""
    identity, applicant = credentials
    listen = await asyncio.to_thread(numeric, config.listen)
    made: Sequence[Transport] = make_transports(identity.key, listen, config.transport, config.discovery.iroh_relay)
    if wrap is not None:
        made = [wrap(transport, identity.peer) for transport in made]
    for transport in made:
        stack.push_async_callback(transport.close)
    if applicant is None:
        return OpenedNode(identity, None, made)
    member = await applicant.enter(made)
    return OpenedNode(identity, member, member.transports)


class Network:
    """A server's addresses, the members that it knows, what dials and what answers. Nothing is bound before `listen`.

    `fingerprint` is the model that it serves. `notice` hears what the operator should know.
    """

    def __init__(
        self,
        config: ServeOptions,
        node: OpenedNode,
        fingerprint: str,
        notice: Notice,
        clock: Clock,
    ) -> None:
        self.identity, self.member, transports = node
        me = self.identity.peer
        self.clock = clock
        self.addresses: tuple[str, ...] = ()
        self.directory = Directory(clock, me)
        self.dialler = Dialler(transports, clock=clock, only=config.transport)
        self.accounts = Accounts(config.shares, members=self.member is not None)
        self.dispatcher = ChannelDispatcher(me, self.directory, clock, self.accounts)
        self.peer_latency = PeerLatency(self.dialler, clock, lambda: self.addresses)
        self.redirector = Redirector(self.identity, self.dialler, clock, lambda: self.addresses, self.directory.ahead_s)
        rate = config.max_upload_bits_per_s
        self.throttle = None if rate is None else TokenBucket(rate / 8, UPLOAD_BURST_S * rate / 8, clock)
        tickets = (*config.peers, *(self.member.tickets if self.member is not None else ()))
        known = tuple(map(Ticket.parse, tickets))
        self.gossip = Gossip(
            me, self.directory, self.dialler, notice, clock, known, fingerprint, lambda: self.addresses
        )
        discoveries = Discoveries(config.discovery, fingerprint, clock)
        finder = discoveries.finder(self.directory, self.dialler, me)
        self.announcer = Announcer(discoveries, finder, lambda: self.directory.get(me), notice, clock)
        if self.member is not None:
            self.member.guard(self.directory)
        self._blocks_are_free = config.blocks is None
        self._transports = transports
        self._sequence = int(clock.wall() * 1000)

    async def listen(self, stack: contextlib.AsyncExitStack) -> None:
        """Answer who dials, and begin to be findable; `stack` ends both. Raises UsageError where an address cannot be bound."""
        await stack.enter_async_context(self.redirector)
        self.addresses = await listen_all(self._transports, self.dispatcher.handle)
        await stack.enter_async_context(self.announcer)

    async def join(self) -> None:
        """Exchange records with the members that are known, or look for one where that was asked for."""
        await self.gossip.join()
        if not self.gossip.others() and self._blocks_are_free:
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
        signed = sign_record(stamped, self.identity)
        self.directory.add(signed.data, proof=proof)
        return signed.record
