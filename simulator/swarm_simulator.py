"""A swarm on a virtual clock: the real placement and routing under churn, with stale views and what joining costs.

Everybody's view of the others is the swarm as it was at the last tick of GOSSIP_S. A server that crashed is seen until its
record expires; before a server leaves its blocks it dials those that it counts on, so that it does not count on the dead. A
joining server announces where it goes, downloads, loads, then serves. One that moves serves on while it downloads, and what it
has fetched before is still on its disk.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable

import msgspec

from shoal.swarm.directory.records import RECORD_LIFETIME_S, RECORD_RENEWAL_S
from shoal.swarm.placement.block_inventory import BlockInventory
from shoal.swarm.placement.local_search import best_place
from shoal.swarm.placement.rebalancer import GOSSIP_S, NOTICE_S, MovePlan, Rebalancer, decide
from shoal.swarm.placement.swarm_load import ServerLoad, best_span
from shoal.types import PeerId, Span
from simulator.churn_model import ChurnModel, ServerProfile
from simulator.gossip_view import GossipView
from simulator.route_probe import probe_routes
from simulator.sim_metrics import Report, SimMetrics
from simulator.sim_server import SimServer

LOOK_S = 300.0
"""How often a server thinks about moving."""
RETRY_S = 5.0
"""How often it looks after a move that it has announced."""
WATCH_S = 15.0
"""How often the planning server of a medium swarm, and the next one, ask whether the others are alive."""
SILENCE_S = 10.0
"""How long they wait for an answer."""
SERVED = 0.8
"""Blocks that are served, of those that fit into all memories (measured): some join, some hold fewer than they could."""
SAMPLE_S = 300.0
ROUTE_EVERY_S = 3600.0


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """What to simulate. `redundancy`, if given, sets the number of servers: servers that *serve* a block, on average over
    blocks and time; `serving_per_block` of the report is what came of it. `ahead`: how many
    blocks of the model a server of a medium swarm keeps on its disk, fetched while its line is idle."""

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
        self.view = GossipView(scenario.blocks)
        self.tally = SimMetrics(scenario.blocks)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._routes: list[tuple[float, int]] = []

    def run(self) -> Report:
        """Simulate; deterministic for a scenario."""
        for _ in range(self.scenario.num_servers):
            server = self._add(self.scenario.population.newcomer(self.people, present=True))
            self.view.tick(self.live)
            self._serve(server, server.goal)
            self.view.tick(self.live)
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
        """Seconds to the next arrival; as many come as leave."""
        return self.people.expovariate(self.scenario.num_servers / self.scenario.population.mean_session_s)

    def _gossip(self) -> None:
        self.view.tick(self.live)
        self._glance()
        self._at(GOSSIP_S, self._gossip)

    def _publish(self, server: SimServer) -> None:
        self.view.tell(server.mover.peer, server.holder)

    def _glance(self) -> None:
        """Servers that the plan moves fetch what they lack, and look when they have it."""
        for holder in [one for one in self.view.scene.held.values() if one.planned]:
            server = self.live.get(holder.peer)
            if server is None or server.serves is None or server.mover.plan is not None:
                continue
            server.wanted = holder.goal
            if server.inventory.lacks(holder.goal):
                self._fetch(server)
            else:
                self._look(server)

    def _fetch(self, server: SimServer) -> None:
        """Fetch one block after another while there is something to fetch."""
        if server.fetching or not self._alive(server) or server.serves is None:
            return
        block = server.inventory.next_block(server.serves, server.wanted)
        if block is None:
            return
        server.fetching = True
        self._at(server.block_s, lambda: self._fetched(server, block))

    def _fetched(self, server: SimServer, block: int) -> None:
        server.fetching = False
        server.inventory.add([block])
        if self._alive(server):
            self._publish(server)
            self._fetch(server)

    def _arrive(self) -> None:
        server = self._add(self.scenario.population.newcomer(self.people))
        self._at(server.fetch_s(server.goal), lambda: self._load(server, server.goal))
        self._at(self._gap(), self._arrive)

    def _add(self, power: ServerProfile) -> SimServer:
        peer = PeerId(f"{self.rng.getrandbits(256):064x}")
        span = self._choose(peer, power)
        server = SimServer(peer, power, span, BlockInventory(self.scenario.blocks, self.scenario.ahead))
        self.live[peer] = server
        self.tally.population(self.now, 1)
        self._publish(server)
        self._at(power.stays_s, lambda: self._leave(server))
        return server

    def _choose(self, peer: PeerId, power: ServerProfile) -> Span:
        if not self.view.medium:
            return best_span(self.view.scene, power.max_blocks, power.block_rows_per_s)
        first = Span(0, 1)
        mine = ServerLoad(peer, first, first, False, power.block_rows_per_s, power.max_blocks)
        return best_place(self.scenario.blocks, list(self.view.scene.held.values()), mine)[0]

    def _alive(self, server: SimServer) -> bool:
        return self.live.get(server.mover.peer) is server

    def _load(self, server: SimServer, goal: Span) -> None:
        self._at(server.load_s(goal), lambda: self._serve(server, goal))

    def _serve(self, server: SimServer, goal: Span) -> None:
        if not self._alive(server):
            return
        server.goal = server.serves = goal
        server.inventory.add(goal.blocks())
        server.wanted = None
        self.tally.serve(self.now, goal, server.power.block_rows_per_s, 1)
        if not server.joined:
            server.joined = True
            self.tally.join(self.now, server.power.block_rows_per_s, server.power.max_blocks)
        self._publish(server)
        if self.view.medium:
            self._fetch(server)
        self._look_in(self.rng.uniform(0, LOOK_S), server)

    def _stop(self, server: SimServer) -> None:
        if server.serves is not None:
            self.tally.serve(self.now, server.serves, server.power.block_rows_per_s, -1)
            server.serves = None

    def _leave(self, server: SimServer) -> None:
        self._stop(server)
        if server.joined:
            self.tally.part(self.now, server.power.block_rows_per_s, server.power.max_blocks)
        peer = server.mover.peer
        del self.live[peer]
        self.tally.population(self.now, -1)
        if server.power.crashes:
            lives_s = RECORD_LIFETIME_S - self.rng.uniform(0, RECORD_RENEWAL_S)
            if self.view.medium:
                lives_s = SILENCE_S + self.rng.uniform(0, WATCH_S)
            self._at(lives_s, lambda: self.view.tell(peer, None))
        else:
            self.view.tell(peer, None)

    def _look_in(self, delay_s: float, server: SimServer) -> None:
        server.turn += 1
        turn = server.turn
        self._at(delay_s, lambda: self._look(server) if server.turn == turn else None)

    def _look(self, server: SimServer) -> None:
        """A server asks the rule, and does what it says."""
        if not self._alive(server) or server.serves is None:
            return
        mover = server.mover
        verdict = decide(self.view.scene, mover, self.now)
        again_s = LOOK_S if mover.plan is None else RETRY_S
        if verdict.action == "announce" and verdict.span is not None:
            again_s = max(server.fetch_s(verdict.span), NOTICE_S)
            server.mover = Rebalancer(mover.peer, MovePlan(verdict.span, self.now, self.now + again_s, verdict.agreed))
            self._publish(server)
        elif verdict.action == "withdraw":
            server.mover = Rebalancer(mover.peer, None, self.now + verdict.rest_s)
            again_s = LOOK_S
            self._publish(server)
        elif verdict.action == "go" and verdict.span is not None and self._others_answer(server):
            self._go(server, verdict.span, verdict.rest_s)
            return  # and look again when it serves
        elif mover.plan is None:
            uneasy = mover.uneasy_since if mover.uneasy_since is not None else self.now
            server.mover = Rebalancer(mover.peer, None, mover.rests_until, uneasy if verdict.uneasy else None)
        self._look_in(again_s, server)

    def _go(self, server: SimServer, goal: Span, rest_s: float) -> None:
        self._stop(server)
        server.goal = goal
        server.mover = Rebalancer(server.mover.peer, None, self.now + rest_s)
        self.tally.moves += 1
        self._publish(server)
        self._load(server, goal)

    def _others_answer(self, server: SimServer) -> bool:
        """Whether a server that is alive serves each of its blocks: it dials them."""
        assert server.serves is not None
        return bool((self.tally.holders[server.serves.start : server.serves.stop] > 1).all())

    def _sample(self) -> None:
        self.tally.sample(self.now)
        self._at(SAMPLE_S, self._sample)

    def _route(self) -> None:
        servers = [server for server in self.live.values() if server.serves is not None]
        if self.tally.covered():
            self._routes += probe_routes(self.rng, self.scenario.blocks, servers, self.now)
        self._at(ROUTE_EVERY_S, self._route)
