"""Moves in swarms with stale views: no block is ever left, and they come to an end."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.swarm.directory.records import ServerRecord
from shoal.swarm.placement import rebalancer as rule
from shoal.swarm.placement import swarm_load
from shoal.swarm.placement.block_inventory import BlockInventory
from shoal.swarm.placement.rebalancer import GOSSIP_S, Action, Announce, Ask, Move, Publish, Rebalancer, Withdraw
from shoal.swarm.placement.swarm_load import BlockLoad, SwarmLoad, server_loads
from shoal.types import ModelSpec, PeerId, Span


def a_server(rng: random.Random, number: int, num_blocks: int, max_blocks: int) -> ServerRecord:
    """A server somewhere, of some speed."""
    length = rng.randint(1, max_blocks)
    start = rng.randint(0, num_blocks - length)
    return ServerRecord(
        peer=f"{rng.getrandbits(16):04x}{number:04x}{0:056x}",
        sequence=1,
        issued_at=0.0,
        expires_at=300.0,
        addresses=(),
        model=ModelSpec("tiny", "f" * 32, num_blocks, 48),
        span=Span(start, start + length),
        prefill_rows_per_s=rng.choice([1.0, 2.0, 5.0, 20.0]),
        max_blocks=max_blocks,
    )


@contextmanager
def rests(large: bool, trust_s: float, rest_s: float) -> Iterator[None]:
    """Short ones; in `large` swarms, of more than four servers, no plan is followed."""
    limit = 4 if large else swarm_load.MAX_PLANNED_SERVERS
    with patch.object(swarm_load, "MAX_PLANNED_SERVERS", limit):
        with patch.object(rule, "TRUST_S", trust_s), patch.object(rule, "REST_S", rest_s):
            yield


class World:
    """Servers that follow the rule, each with its own view of the others, up to one gossip round old."""

    def __init__(self, rng: random.Random, stale_s: float) -> None:
        self.rng, self.stale_s = rng, stale_s
        self.num_blocks = rng.randint(2, 6)
        servers = [
            a_server(rng, n, self.num_blocks, rng.randint(1, self.num_blocks))
            for n in range(rng.choice([rng.randint(2, 6), rng.randint(17, 20)]))
        ]
        for block in range(self.num_blocks):  # everything is served at first
            if not any(block in server.span for server in servers):
                extra = a_server(rng, 90 + block, self.num_blocks, 1)
                servers.append(msgspec.structs.replace(extra, span=Span(block, block + 1)))
        self.histories = {server.peer: [(0.0, server)] for server in servers}
        inventory = BlockInventory(self.num_blocks, self.num_blocks)
        inventory.add(range(self.num_blocks))
        self.rebalancers = {server.peer: Rebalancer(PeerId(server.peer), inventory, rng) for server in servers}
        self.arrivals: dict[str, float] = {}
        self.moves = 0

    def now_of(self, peer: str) -> ServerRecord:
        """A server's own record."""
        return self.histories[peer][-1][1]

    def view(self, me: str, now: float) -> list[ServerRecord]:
        """What a server knows: of each other one some state of the last gossip round, its own as it is."""
        seen = []
        for peer, history in self.histories.items():
            at = now if peer == me else now - self.rng.uniform(0, self.stale_s)
            seen.append(next((record for since, record in reversed(history) if since <= at), history[0][1]))
        return seen

    def publish(self, peer: str, now: float, **changes: object) -> None:
        """A server says something new about itself."""
        self.histories[peer].append((now, msgspec.structs.replace(self.now_of(peer), **changes)))

    def act(self, peer: str, now: float, load_s: float) -> bool:
        """One server decides and acts until it waits; returns whether its record is another one then."""
        acted = False
        while peer not in self.arrivals:
            swarm = SwarmLoad(self.num_blocks, server_loads(self.num_blocks, self.view(peer, now)))
            action = self.rebalancers[peer].decide(swarm, now).action
            if action is None:
                break
            acted |= self._execute(peer, action, now, load_s)
        return acted

    def _execute(self, peer: str, action: Action, now: float, load_s: float) -> bool:
        match action:
            case Ask():
                self.rebalancers[peer].asked(now)
                return False
            case Publish(plan):
                self.publish(peer, now, plan=plan)
            case Announce(span):
                self.publish(peer, now, next_span=span)
            case Withdraw():
                self.publish(peer, now, next_span=None)
            case Move(span):
                self.publish(peer, now, draining=True, next_span=span)
                self.arrivals[peer] = now + load_s
                self.moves += 1
        return True

    def arrive(self, now: float) -> None:
        """Servers whose new blocks are loaded serve them."""
        for peer in [peer for peer, at in self.arrivals.items() if at <= now]:
            del self.arrivals[peer]
            record = self.now_of(peer)
            assert record.next_span is not None
            rows = record.prefill_rows_per_s * len(record.span) / len(record.next_span)
            self.publish(peer, now, draining=False, span=record.next_span, next_span=None, prefill_rows_per_s=rows)
            self.rebalancers[peer].moved(True, now)

    def uncovered(self) -> list[int]:
        """Blocks that no server serves."""
        serving = [record.span for peer in self.histories if not (record := self.now_of(peer)).draining]
        return [block for block in range(self.num_blocks) if not any(block in span for span in serving)]

    def blocks(self) -> BlockLoad:
        """What each block gets, with all servers where they say they will be."""
        records = [msgspec.structs.replace(self.now_of(peer), plan=()) for peer in self.histories]
        return SwarmLoad(self.num_blocks, server_loads(self.num_blocks, records)).blocks


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**40), st.booleans())
def test_no_block_is_ever_left(seed: int, large: bool) -> None:
    """Servers act in any order, with views of any age up to a gossip round: each block always has a server."""
    rng = random.Random(seed)
    with rests(large, trust_s=30.0, rest_s=10.0):
        world = World(rng, GOSSIP_S)
        now = 0.0
        for _ in range(100):
            now += rng.choice([0.0, 0.1, 0.5, 2.0, 4.0, 15.0])
            world.arrive(now)
            world.act(rng.choice(list(world.rebalancers)), now, load_s=rng.choice([0.0, 1.0, 30.0]))
            assert not world.uncovered()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**40), st.booleans())
def test_a_swarm_without_churn_comes_to_rest(seed: int, large: bool) -> None:
    """Even without any rest between a server's moves there is a last one, and the objective is no worse than at first."""
    rng = random.Random(seed)
    with rests(large, trust_s=rule.TRUST_S, rest_s=0.0):
        world = World(rng, 0.0)
        first = world.blocks()
        now, quiet = 0.0, 0
        for _ in range(300):
            now += 20.0
            world.arrive(now)
            acted = [
                world.act(peer, now, load_s=0.0) for peer in rng.sample(list(world.rebalancers), len(world.rebalancers))
            ]
            quiet = 0 if any(acted) or world.arrivals else quiet + 1
            if quiet == 20:
                break
        assert quiet == 20
        assert world.moves <= 3 * len(world.rebalancers)
        assert world.blocks().weakness(first.scale) <= first.weakness(first.scale) * (1 + 1e-9)
