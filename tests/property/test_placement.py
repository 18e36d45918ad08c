"""Moves in swarms with stale views: no block is ever left, and they come to an end."""

from __future__ import annotations

import random

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.swarm.directory.records import ServerRecord
from shoal.swarm.placement.rebalancer import GOSSIP_S, TRUST_S, MovePlan, Rebalancer, judge_move
from shoal.swarm.placement.shared_plan import PlanAuthor, agreed_holders
from shoal.swarm.placement.swarm_load import holders, strengths
from shoal.types import ModelSpec, PeerId, Span


def a_server(rng: random.Random, number: int, num_blocks: int, max_blocks: int) -> ServerRecord:
    """A server somewhere, of some speed."""
    length = rng.randint(1, max_blocks)
    start = rng.randint(0, num_blocks - length)
    return ServerRecord(
        peer=f"{rng.getrandbits(16):04x}{number:060x}",
        sequence=1,
        issued_at=0.0,
        expires_at=300.0,
        addresses=(),
        model=ModelSpec("tiny", "f" * 32, num_blocks, 48),
        span=Span(start, start + length),
        prefill_rows_per_s=rng.choice([1.0, 2.0, 5.0, 20.0]),
        max_blocks=max_blocks,
    )


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
                servers.append(
                    msgspec.structs.replace(a_server(rng, 90 + block, self.num_blocks, 1), span=Span(block, block + 1))
                )
        self.histories = {server.peer: [(0.0, server)] for server in servers}
        self.movers = {server.peer: Rebalancer(PeerId(server.peer)) for server in servers}
        self.drafters = {server.peer: PlanAuthor() for server in servers}
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

    def act(self, peer: str, now: float, load_s: float) -> str:
        """One server looks around and does what the rule says."""
        mover, view = self.movers[peer], self.view(peer, now)
        plan = self.drafters[peer].draft(self.num_blocks, agreed_holders(self.num_blocks, view), mover.peer)
        if plan is not None:
            self.publish(peer, now, plan=plan)
        verdict = judge_move(self.num_blocks, view, mover, now)
        if verdict.action == "announce":
            assert verdict.span is not None
            self.movers[peer] = Rebalancer(mover.peer, MovePlan(verdict.span, now, agreed=verdict.agreed))
            self.publish(peer, now, next_span=verdict.span)
        elif verdict.action == "withdraw":
            self.movers[peer] = Rebalancer(mover.peer, None, now + verdict.rest_s * self.rng.random())
            self.publish(peer, now, next_span=None)
        elif verdict.uneasy:
            self.movers[peer] = msgspec.structs.replace(mover, uneasy_since=now - self.rng.choice([0.0, TRUST_S]))
        elif verdict.action == "go":
            self.movers[peer] = Rebalancer(mover.peer)
            self.publish(peer, now, draining=True)
            self.arrivals[peer] = now + load_s
            self.moves += 1
        return verdict.action

    def arrive(self, now: float) -> None:
        """Servers whose new blocks are loaded serve them."""
        for peer in [peer for peer, at in self.arrivals.items() if at <= now]:
            del self.arrivals[peer]
            record = self.now_of(peer)
            assert record.next_span is not None
            rows = record.prefill_rows_per_s * len(record.span) / len(record.next_span)
            self.publish(peer, now, draining=False, span=record.next_span, next_span=None, prefill_rows_per_s=rows)

    def uncovered(self) -> list[int]:
        """Blocks that nobody serves."""
        serving = [record.span for peer in self.histories if not (record := self.now_of(peer)).draining]
        return [block for block in range(self.num_blocks) if not any(block in span for span in serving)]

    def weakest(self) -> float:
        """The weakest block's strength, with all where they will be."""
        records = [self.now_of(peer) for peer in self.histories]
        return float(strengths(self.num_blocks, holders(self.num_blocks, records)).min())


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**40))
def test_no_block_is_ever_left(seed: int) -> None:
    """Whoever acts when, with views of any age up to a gossip round: each block always has a server."""
    rng = random.Random(seed)
    world = World(rng, GOSSIP_S)
    now = 0.0
    for _ in range(100):
        now += rng.choice([0.0, 0.1, 0.5, 2.0, 4.0])
        world.arrive(now)
        world.act(rng.choice(list(world.movers)), now, load_s=rng.choice([0.0, 1.0, 30.0]))
        assert not world.uncovered()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**40))
def test_a_swarm_without_churn_comes_to_rest(seed: int) -> None:
    """Even without any rest between a server's moves there is a last one, and the weakest block is no weaker than at first."""
    rng = random.Random(seed)
    world = World(rng, 0.0)
    first = world.weakest()
    now, quiet = 0.0, 0
    for _ in range(200):
        now += 20.0
        world.arrive(now)
        actions = [world.act(peer, now, load_s=0.0) for peer in rng.sample(list(world.movers), len(world.movers))]
        quiet = 0 if set(actions) != {"wait"} or world.arrivals else quiet + 1
        if quiet == 5:
            break
    assert quiet == 5
    assert world.moves <= 3 * len(world.movers)
    assert world.weakest() >= first * (1 - 1e-9)
