"""What the servers of a swarm give its blocks: the state on which placement decides, and the one objective.

A server computes a number of block·rows a second, whatever it holds: with n blocks it gives each an n-th. The throughput of a
block is the sum over its servers. Servers count where they will be: announced and planned moves and joining servers at their
goal, leaving servers nowhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import msgspec
import numpy as np
import numpy.typing as npt

from shoal.swarm.directory.records import KEY_DIGITS, ServerRecord
from shoal.types import PeerId, Span

Floats = npt.NDArray[np.float64]
Plan = tuple[tuple[str, Span], ...]
"""(the first digits of a node id, where that server should go)."""

MAX_PLANNED_SERVERS = 128
"""Up to this many servers follow a shared plan; more find no worse places alone."""
DEFAULT_BLOCK_ROWS_PER_S = 500.0
"""The rate of a server when no server has measured its own."""

SQUARINGS = 4
POWER = 2.0**SQUARINGS
SINGLE_HOLDER = 0.9
"""The share of its throughput that a block with a single holder counts for: the loss of that server stops every session."""
FLOOR = 0.15
"""Throughputs below this share of the mean count as this: a missing block is bad but finite. Sums of doubles see nothing
beside a term that is larger by more than 10^13."""
TRUST = np.array([0.0, SINGLE_HOLDER, 1.0])


class ServerLoad(msgspec.Struct, frozen=True):
    """What placement needs of a record. `max_blocks` 0: the owner chose the blocks, and the server never moves. `fetch_s`:
    seconds to fetch a block that is not `on_disk`. `joining`: it has not served yet. `plan`: where it thinks servers should go.
    """

    peer: PeerId
    goal: Span
    serves: Span | None
    moving: bool
    block_rows_per_s: float
    max_blocks: int
    on_disk: tuple[Span, ...] = ()
    fetch_s: float = 0.0
    joining: bool = False
    plan: Plan = ()

    @property
    def committed(self) -> bool:
        """Whether it serves and has not announced that it will stop."""
        return self.serves is not None and not self.moving

    @property
    def planned(self) -> bool:
        """Whether a plan has it move, and it has not announced that yet."""
        return self.committed and self.goal != self.serves


def server_loads(num_blocks: int, records: Iterable[ServerRecord]) -> list[ServerLoad]:
    """The servers that hold, or will hold, blocks of a model, by node id.

    The rate is that of prefill, which does not depend on how many sessions share a step; a server that has not measured it
    counts as the median of the others.
    """
    sound = [record for record in records if 0 <= _goal(record).start < _goal(record).stop <= num_blocks]
    kept = sorted((record for record in sound if not record.draining or record.next_span), key=lambda one: one.peer)
    rates = [_rate(record) for record in kept]
    usual = _median(rate for rate in rates if rate)
    return [
        ServerLoad(
            PeerId(record.peer),
            _goal(record),
            None if record.draining else record.span,
            record.next_span is not None,
            rate or usual,
            max(record.max_blocks, len(_goal(record))) if record.max_blocks else 0,
            record.on_disk,
            record.fetch_s if 0 <= record.fetch_s < math.inf else 0.0,
            record.draining and record.next_span == record.span,
            record.plan,
        )
        for record, rate in zip(kept, rates, strict=True)
    ]


def _goal(record: ServerRecord) -> Span:
    return record.next_span or record.span


def _rate(record: ServerRecord) -> float:
    rate = record.prefill_rows_per_s * len(record.span)
    return min(rate, 1e12) if math.isfinite(rate) and rate > 0 else 0.0


def _median(rates: Iterable[float]) -> float:
    known = sorted(rates)
    return known[len(known) // 2] if known else DEFAULT_BLOCK_ROWS_PER_S


class BlockLoad:
    """Rows/s and number of holders of each block [num_blocks], and the objective over them.

    The objective is the *soft minimum*: the throughput that all blocks would have if they were equal and together as weak.
    Weakness is the sum of throughputs to the power of -16, so that the weakest count most and ties still count.
    """

    def __init__(self, throughput: Floats, holders: npt.NDArray[np.int64], total_rows_per_s: float = 0.0) -> None:
        self.throughput = throughput
        self.holders = holders
        self.total_rows_per_s = total_rows_per_s

    def copy(self) -> BlockLoad:
        """An independent copy."""
        return BlockLoad(self.throughput.copy(), self.holders.copy(), self.total_rows_per_s)

    def add(self, span: Span, block_rows_per_s: float, sign: int = 1) -> None:
        """A server holds a span, or (-1) does not any more."""
        blocks = slice(span.start, span.stop)
        self.total_rows_per_s += sign * block_rows_per_s
        self.holders[blocks] += sign
        self.throughput[blocks] += sign * block_rows_per_s / len(span)
        if sign < 0:  # rounding leaves crumbs: where no server is, there is nothing
            self.throughput[blocks] = np.where(self.holders[blocks] > 0, np.maximum(self.throughput[blocks], 0), 0.0)

    @property
    def scale(self) -> float:
        """Rows/s of each block if all servers were spread evenly."""
        return max(self.total_rows_per_s / len(self.throughput), 1e-12)

    def trusted(self, added: Floats | float, more: int, out: Floats) -> None:
        """Rows/s that are counted on, with `added` rows/s and `more` holders everywhere; rows of `added` give rows."""
        np.add(self.throughput, added, out=out)
        out *= TRUST.take(self.holders + more, mode="clip")

    def weaknesses(self, scale: float) -> Floats:
        """Of each block."""
        out = np.empty(len(self.throughput))
        self.trusted(0.0, 0, out)
        return weaken(out, scale)

    def weakness(self, scale: float) -> float:
        """The sum over the blocks."""
        return float(self.weaknesses(scale).sum())


def weaken(throughput: Floats, scale: float) -> Floats:
    """Throughputs as weaknesses, in place."""
    throughput /= scale
    np.maximum(throughput, FLOOR, out=throughput)
    np.reciprocal(throughput, out=throughput)
    for _ in range(SQUARINGS):
        np.multiply(throughput, throughput, out=throughput)
    return throughput


def soft_minimum_gain(before: float, after: float) -> float:
    """By what factor the soft minimum grows when the weakness goes from one to another."""
    return float((before / after) ** (1 / POWER))


class SwarmLoad:
    """The servers of a swarm and what they add up to. Up to MAX_PLANNED_SERVERS are counted as the shared plan has them."""

    def __init__(self, num_blocks: int, servers: Iterable[ServerLoad] = ()) -> None:
        self.num_blocks = num_blocks
        self.servers: dict[PeerId, ServerLoad] = {}
        self.blocks = BlockLoad(np.zeros(num_blocks), np.zeros(num_blocks, np.int64))
        self.committed = np.zeros(num_blocks, np.int64)
        self._settled: BlockLoad | None = None
        self._best_gains: dict[int, float] = {}
        listed = list(servers)
        self._listed = listed
        self.watchers = watchers(listed)
        for server in follow(num_blocks, listed, self.author):
            self.put(server)

    @property
    def author(self) -> PeerId | None:
        """Whose plan counts; None in a swarm that is too large for a plan, or where no server serves."""
        return self.watchers[0] if self.watchers else None

    @property
    def usual_rate(self) -> float:
        """The median of the servers' block·rows/s."""
        return _median(server.block_rows_per_s for server in self.servers.values())

    def put(self, server: ServerLoad) -> None:
        """A server is new, or its record is. In swarms that follow no plan."""
        self.drop(server.peer)
        self.servers[server.peer] = server
        self._count(server, 1)

    def drop(self, peer: PeerId) -> None:
        """A server is gone, if it was there."""
        server = self.servers.pop(peer, None)
        if server is not None:
            self._count(server, -1)

    def _count(self, server: ServerLoad, sign: int) -> None:
        self.blocks.add(server.goal, server.block_rows_per_s, sign)
        if server.committed and server.serves is not None:
            self.committed[server.serves.start : server.serves.stop] += sign
        self._settled = None
        self._best_gains.clear()

    @property
    def settled(self) -> BlockLoad:
        """Without the servers that have not served yet: they may be long in coming, and no move counts on them."""
        if self._settled is None:
            self._settled = self.blocks.copy()
            for server in self.servers.values():
                if server.joining:
                    self._settled.add(server.goal, server.block_rows_per_s, -1)
        return self._settled

    def others_stay(self, server: ServerLoad) -> bool:
        """Whether each of its blocks has another committed server, if it is committed itself."""
        assert server.serves is not None
        return bool((self.committed[server.serves.start : server.serves.stop] >= 1 + server.committed).all())

    def uncovered_without(self, server: ServerLoad) -> list[int]:
        """Its blocks that no other committed server serves."""
        assert server.serves is not None
        return [block for block in server.serves.blocks() if self.committed[block] <= server.committed]

    def best_gain(self, max_blocks: int) -> float:
        """What no single server with memory for so many blocks can exceed: the gain if its span had no weakness at all."""
        if max_blocks not in self._best_gains:
            weak = self.settled.weaknesses(self.settled.scale)
            sums = np.concatenate(([0.0], np.cumsum(weak)))
            count = min(max_blocks, self.num_blocks)
            rest = float(sums[-1] - (sums[count:] - sums[:-count]).max())
            self._best_gains[max_blocks] = math.inf if rest <= 0 else soft_minimum_gain(float(sums[-1]), rest)
        return self._best_gains[max_blocks]

    def gain(self, moving: Iterable[ServerLoad]) -> float:
        """By what factor the soft minimum is larger with these servers at their goals than with each where it serves."""
        before, scale = self.settled.copy(), self.settled.scale
        for server in moving:
            if server.serves is not None:
                before.add(server.goal, server.block_rows_per_s, -1)
                before.add(server.serves, server.block_rows_per_s)
        return soft_minimum_gain(before.weakness(scale), self.settled.weakness(scale))

    def without(self, peers: Iterable[PeerId], own: ServerLoad | None = None) -> SwarmLoad:
        """The swarm as it is without these servers, and with a server's `own` record in place of an older one."""
        gone, newer = set(peers), () if own is None else (own,)
        if len(self.servers) <= MAX_PLANNED_SERVERS:
            known = self._listed if self.author is not None else self.servers.values()  # without any goals of a plan
            servers = {one.peer: one for one in (*known, *newer) if one.peer not in gone}
            return SwarmLoad(self.num_blocks, servers.values())
        twin = SwarmLoad(self.num_blocks)
        twin._become(self)
        for peer in gone:
            twin.drop(peer)
        for server in newer:
            twin.put(server)
        return twin

    def _become(self, other: SwarmLoad) -> None:
        """A copy, without counting each server anew."""
        self.servers, self.blocks, self.committed = dict(other.servers), other.blocks.copy(), other.committed.copy()


def watchers(servers: list[ServerLoad]) -> list[PeerId]:
    """The author of the plan and its successor: the first two, by node id, that serve. None above MAX_PLANNED_SERVERS."""
    if len(servers) > MAX_PLANNED_SERVERS:
        return []
    return sorted(server.peer for server in servers if server.serves is not None)[:2]


def follow(num_blocks: int, servers: list[ServerLoad], author: PeerId | None) -> list[ServerLoad]:
    """Servers as the author's plan has them; what a plan cannot ask of a server is passed over."""
    goals = dict(next((server.plan for server in servers if server.peer == author), ()))
    return [
        msgspec.structs.replace(server, goal=goal)
        if (goal := goals.get(server.peer[:KEY_DIGITS])) and _possible(num_blocks, server, goal)
        else server
        for server in servers
    ]


def _possible(num_blocks: int, server: ServerLoad, goal: Span) -> bool:
    return server.committed and 0 <= goal.start < goal.stop <= num_blocks and len(goal) <= server.max_blocks
