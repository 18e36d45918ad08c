"""A swarm on a virtual clock: the servers' own Rebalancer and routing under churn, with stale views and what joining costs.

All servers see the records as they were at the last tick of GOSSIP_S. A server that crashed is seen until its record expires,
and by those that ask it until SILENCE_S have passed. A joining server announces where it goes, downloads, loads, then serves.
One that moves serves on while it downloads, and what it has fetched before is still on its disk.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable

import msgspec

from shoal.swarm.directory.records import RECORD_LIFETIME_S, RECORD_RENEWAL_S
from shoal.swarm.placement.block_inventory import BlockInventory
from shoal.swarm.placement.local_search import choose_span
from shoal.swarm.placement.rebalancer import GOSSIP_S, Action, Announce, Ask, Move, Publish, Withdraw
from shoal.swarm.placement.swarm_load import SwarmLoad
from shoal.types import PeerId, Span
from simulator.churn_model import ChurnModel, ServerProfile
from simulator.gossip_view import GossipView
from simulator.route_probe import probe_routes
from simulator.sim_metrics import Report, SimMetrics
from simulator.sim_server import SimServer

SILENCE_S = 10.0
"""How long a server waits for an answer."""
ASKED_AT_ONCE = 32
"""Servers that are asked by chance."""
SERVED = 0.8
"""Blocks that are served, of those that fit into all memories (measured): some join, some hold fewer than they could."""
SAMPLE_S = 300.0
ROUTE_EVERY_S = 3600.0


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """What to simulate. `redundancy`, if given, sets the number of servers: servers that *serve* a block, on average over
    blocks and time; `serving_per_block` of the report is what came of it. `ahead`: how many
    blocks of the model a server keeps on its disk where servers follow a plan, fetched while its line is idle."""

    servers: int = 1000
    blocks: int = 126
    hours: float = 12.0
    seed: int = 0
    redundancy: float | None = None
    ahead: int = 10_000
    population: ChurnModel = ChurnModel()

    @property
    def num_servers(self) -> int:
        """How many servers are there on average, joining ones included."""
        if self.redundancy is None:
            return self.servers
        return max(1, round(self.redundancy * self.blocks / (self.population.mean_blocks * SERVED)))


class Simulator:
    """One run of a scenario; `run` gives the report."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.rng = random.Random(scenario.seed)
        self.people = random.Random(f"{scenario.seed} people")  # its own, so that every rule meets the same ones
        self.now = 0.0
        self.live: dict[PeerId, SimServer] = {}
        self.crashed: set[PeerId] = set()
        self.view = GossipView(scenario.blocks)
        self.tally = SimMetrics(scenario.blocks)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._routes: list[tuple[float, int]] = []
        self._begun = False

    def run(self) -> Report:
        """Simulate; deterministic for a scenario."""
        for _ in range(self.scenario.num_servers):
            server = self._add(self.scenario.population.newcomer(self.people, present=True))
            self.view.tick()
            self._serve(server, server.span)
            self.view.tick()
        self._begun = True
        for server in list(self.live.values()):
            self._decide(server)
        self._at(GOSSIP_S, self._gossip)
        self._at(0.0, self._sample)
        self._at(ROUTE_EVERY_S / 2, self._route)
        self._at(self._gap(), self._arrive)
        end = self.scenario.hours * 3600
        while self._events[0][0] < end:
            self.now, _, event = heapq.heappop(self._events)
            event()
        self.tally.advance(end)
        return self.tally.report(self.scenario.hours, self._routes)

    def _at(self, delay_s: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + delay_s, next(self._order), event))

    def _gap(self) -> float:
        return self.people.expovariate(self.scenario.num_servers / self.scenario.population.mean_session_s)

    def _gossip(self) -> None:
        """News spread; servers that the plan concerns look at it at once."""
        if self.view.tick():
            swarm = self.view.swarm()
            if swarm.author is not None:
                planned = [one.peer for one in swarm.servers.values() if one.planned]
                for peer in dict.fromkeys([*swarm.watchers, *planned]):
                    if peer in self.live:
                        self._decide(self.live[peer])
        self._at(GOSSIP_S, self._gossip)

    def _publish(self, server: SimServer) -> None:
        self.view.tell(server.peer, server.load)

    def _arrive(self) -> None:
        server = self._add(self.scenario.population.newcomer(self.people))
        self._at(len(server.span) * server.block_s, lambda: self._load(server, server.span))
        self._at(self._gap(), self._arrive)

    def _add(self, power: ServerProfile) -> SimServer:
        peer = PeerId(f"{self.rng.getrandbits(256):064x}")
        silent = self._silent(None)  # it asks before it chooses
        span = choose_span(self.view.swarm(silent), power.max_blocks, power.block_rows_per_s)
        inventory = BlockInventory(self.scenario.blocks, self.scenario.ahead)
        server = self.live[peer] = SimServer(peer, power, span, inventory, self.rng)
        server.silent = silent
        self.tally.population(self.now, 1)
        self._publish(server)
        self._at(power.stays_s, lambda: self._leave(server))
        return server

    def _alive(self, server: SimServer) -> bool:
        return self.live.get(server.peer) is server

    def _load(self, server: SimServer, span: Span) -> None:
        self._at(server.load_s(span), lambda: self._serve(server, span))

    def _serve(self, server: SimServer, span: Span) -> None:
        if not self._alive(server):
            return
        server.span = server.serves = span
        server.goal = None
        server.inventory.add(span.blocks())
        self.tally.serve(self.now, span, server.power.block_rows_per_s, 1)
        if server.joined:
            server.rebalancer.moved(True, self.now)
        else:
            server.joined = True
            self.tally.join(self.now, server.power.block_rows_per_s, server.power.max_blocks)
        self._publish(server)
        if self._begun:
            self._decide(server)

    def _stop(self, server: SimServer) -> None:
        if server.serves is not None:
            self.tally.serve(self.now, server.serves, server.power.block_rows_per_s, -1)
            server.serves = None

    def _leave(self, server: SimServer) -> None:
        self._stop(server)
        if server.joined:
            self.tally.part(self.now, server.power.block_rows_per_s, server.power.max_blocks)
        peer = server.peer
        del self.live[peer]
        self.tally.population(self.now, -1)
        if server.power.crashes:
            self.crashed.add(peer)
            self._at(RECORD_LIFETIME_S - self.rng.uniform(0, RECORD_RENEWAL_S), lambda: self._expire(peer))
        else:
            self.view.tell(peer, None)

    def _expire(self, peer: PeerId) -> None:
        self.crashed.discard(peer)
        self.view.tell(peer, None)

    def _seen_by(self, server: SimServer) -> SwarmLoad:
        return self.view.swarm(server.silent, server.load)

    def _decide(self, server: SimServer) -> None:
        """A server decides and acts until it has to wait."""
        while self._alive(server) and server.serves is not None and not server.asking:
            decision = server.rebalancer.decide(self._seen_by(server), self.now)
            if decision.action is None:
                self._wake_at(server, decision.wake_at)
                break
            self._act(server, decision.action)
        self._fetch(server)

    def _act(self, server: SimServer, action: Action) -> None:
        match action:
            case Ask(peers):
                self._ask(server, peers)
                return
            case Publish(plan):
                server.plan = plan
            case Announce(span):
                server.goal = span
            case Withdraw():
                server.goal = None
            case Move(span):
                self._stop(server)
                server.goal, server.plan = span, ()
                self.tally.moves += 1
                self._load(server, span)
        self._publish(server)

    def _ask(self, server: SimServer, peers: tuple[PeerId, ...] | None) -> None:
        """Answers come at once; silence takes SILENCE_S to notice, and is remembered."""
        found = self._silent(peers) - server.silent
        if not found:
            server.rebalancer.asked(self.now)
            return
        server.silent = {peer for peer in server.silent if peer in self.crashed} | found
        server.asking = True
        self._at(SILENCE_S, lambda: self._asked(server))

    def _asked(self, server: SimServer) -> None:
        server.asking = False
        server.rebalancer.asked(self.now)
        self._decide(server)

    def _silent(self, peers: tuple[PeerId, ...] | None) -> set[PeerId]:
        """Servers that do not answer."""
        if not self.crashed:
            return set()
        if peers is not None:
            return self.crashed.intersection(peers)
        share = ASKED_AT_ONCE / max(len(self.view), 1)
        return {peer for peer in sorted(self.crashed) if self.rng.random() < share}

    def _wake_at(self, server: SimServer, at: float) -> None:
        server.turn += 1
        turn = server.turn
        self._at(max(at - self.now, 0.0), lambda: self._decide(server) if server.turn == turn else None)

    def _fetch(self, server: SimServer) -> None:
        """Fetch one block after another while there is something to fetch."""
        if server.fetching or not self._alive(server) or server.serves is None:
            return
        block = server.rebalancer.next_fetch(self._seen_by(server), self.now)
        if block is not None:
            server.fetching = True
            self._at(server.block_s, lambda: self._fetched(server, block))

    def _fetched(self, server: SimServer, block: int) -> None:
        server.fetching = False
        server.inventory.add([block])
        if self._alive(server):
            self._publish(server)
            self._decide(server)

    def _sample(self) -> None:
        self.tally.sample(self.now)
        self._at(SAMPLE_S, self._sample)

    def _route(self) -> None:
        servers = [server for server in self.live.values() if server.serves is not None]
        if self.tally.covered():
            self._routes += probe_routes(self.rng, self.scenario.blocks, servers, self.now)
        self._at(ROUTE_EVERY_S, self._route)
