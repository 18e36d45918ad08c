"""Best routes over (block boundary, server) by dynamic programming. Integers and arrays only; `routing` says what they mean.

Times are whole nanoseconds, so that equal is equal and the order of additions does not matter. A hop adds one to a cost
that is counted in 1,024ths of a nanosecond: among equally fast routes the one with fewer hops is the cheaper.
"""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Parts = tuple[tuple[int, int, int], ...]
"""(server, first block, end) of each hop."""

HOP = 1
NANOSECOND = 1 << 10
UNREACHABLE = 1 << 61
NEAREST = 8
"""How many of the best successors are tried for everybody before one server's row is searched alone."""
EXACT_CELLS = 1024
"""Cells (blocks by servers) up to which a server that is wanted in more parts than it can take is shared out exactly."""
MAX_SEARCHES = 256
"""And the searches up to which."""


@dataclass(frozen=True)
class Links:
    """What it costs to pass from one of N servers to another. Costs count NANOSECOND to a nanosecond.

    A link costs `near[p] + near[s]` unless `measured` holds the pair: sources, targets, costs, sorted by source. `shut[p, s]`:
    p does not send to s; `known` is `shut` and the measured pairs. `first` and `last` are the client's links.
    """

    near: Ints
    first: Ints
    last: Ints
    shut: Mask
    known: Mask
    measured: tuple[Ints, Ints, Ints]

    def onwards(self, enter: Ints) -> Ints:
        """For each server the least of link and `enter`, the cost from entering a successor on."""
        best = self.near + _least(self.near + enter, self.known)
        sources, targets, costs = self.measured
        if len(sources):
            groups, starts = np.unique(sources, return_index=True)
            best[groups] = np.minimum(best[groups], np.minimum.reduceat(costs + enter[targets], starts))
        return np.minimum(best, UNREACHABLE)

    def row(self, source: int) -> Ints:
        """What `source` pays to reach each server."""
        row = np.where(self.known[source], UNREACHABLE, self.near[source] + self.near)
        sources, targets, costs = self.measured
        mine = sources == source
        row[targets[mine]] = costs[mine]
        return row


def _least(values: Ints | Floats, excluded: Mask) -> Ints | Floats:
    """For each row of `excluded` [N, N] the least of `values` [N] that it does not exclude; else UNREACHABLE or 0."""
    worst = UNREACHABLE if values.dtype == np.int64 else 0
    count = min(NEAREST, len(values))
    top = np.argpartition(values, count - 1)[:count]
    top = top[np.argsort(values[top], kind="stable")]
    free = ~excluded[:, top]
    least = np.where(free.any(axis=1), values[top][free.argmax(axis=1)], worst)
    if values[top[-1]] < worst:  # further ones may be useful to those that exclude all of the best
        for row in np.flatnonzero(~free.any(axis=1)):
            least[row] = np.where(excluded[row], worst, values).min()
    return least


@dataclass(frozen=True)
class HopGraph:
    """N servers over B blocks: who may compute what (`allowed` [B, N]), what that costs, and how much of it at most.

    `block` and `enter` are costs of one block and of a hop's queue; `rows` the rows/s through one block alone; `most` the
    number of blocks that one route may use of a server.
    """

    allowed: Mask
    block: Ints
    enter: Ints
    rows: Floats
    most: Ints
    links: Links

    def cheapest(self) -> Parts | None:
        """The route of least cost whose servers are used within `most`; None if none was found.

        A search keeps `most` hop by hop. If a server then appears in several parts that exceed it together, each route that
        is allowed spares it at least one of these blocks: so the search goes on with each of them forbidden, cheapest
        first. That finds the best, or that there is none, but may take many searches. So in large swarms such a server is
        kept to its longest part first, and the other way is only taken where that leads nowhere.
        """
        if self.allowed.size > EXACT_CELLS and (parts := self._windowed()) is not None:
            return parts
        order = itertools.count()
        heap: list[tuple[int, tuple[tuple[int, int], ...], int, Parts, Mask]] = []

        def search(allowed: Mask) -> None:
            found = replace(self, allowed=allowed)._relaxed()
            if found is not None:
                cost, parts = found
                key = tuple((server, -stop) for server, _, stop in parts)
                heapq.heappush(heap, (cost, key, next(order), parts, allowed))

        search(self.allowed)
        while heap:
            _, _, searches, parts, allowed = heapq.heappop(heap)
            over = self._overused(parts)
            if not over:
                return parts
            if searches > MAX_SEARCHES:
                return self._windowed()
            for server, start, stop in parts:
                for block in range(start, stop) if server == over[0] else ():
                    fewer = allowed.copy()
                    fewer[block, server] = False
                    search(fewer)
        return None

    def _windowed(self) -> Parts | None:
        """A cheap route, with each server that would be used too much kept to one window of the blocks that it holds."""
        graph = self
        while (found := graph._relaxed()) is not None:
            parts = found[1]
            over = self._overused(parts)
            if not over:
                return parts
            graph = replace(graph, allowed=_one_window_each(graph.allowed, self.most, parts, over))
        return None

    def _overused(self, parts: Parts) -> list[int]:
        used: dict[int, int] = {}
        for server, start, stop in parts:
            used[server] = used.get(server, 0) + stop - start
        return [server for server, blocks in used.items() if blocks > self.most[server]]

    def _reach(self) -> Ints:
        """[B, N]: where a hop that starts at a block has to end at the latest."""
        reach = np.zeros(self.allowed.shape, np.int64)
        end = np.full(self.allowed.shape[1], len(self.allowed))
        for block in reversed(range(len(self.allowed))):
            end = np.where(self.allowed[block], end, block)
            reach[block] = np.minimum(end, block + self.most)
        return reach

    def _relaxed(self) -> tuple[int, Parts] | None:
        """Cost and hops of the best route if `most` counts for each hop alone."""
        num_blocks, num_servers = self.allowed.shape
        reach = self._reach()
        stay = np.full((num_blocks, num_servers), UNREACHABLE)  # from computing this block first
        leave = np.full((num_blocks + 1, num_servers), UNREACHABLE)  # from having computed the block before
        leave[num_blocks] = self.links.last
        for block in reversed(range(num_blocks)):
            at = np.flatnonzero(reach[block] > block)
            if not len(at):
                return None
            stops = np.arange(block + 1, reach[block, at].max() + 1)[:, None]
            costs = leave[block + 1 : stops[-1, 0] + 1, at] + (stops - block) * self.block[at]
            stay[block, at] = np.where(stops <= reach[block, at], costs, UNREACHABLE).min(axis=0)
            if block:
                leave[block] = self.links.onwards(self._entering(stay[block]))
        start = self.links.first + self._entering(stay[0])
        best = int(start.min())
        return (best, self._walk(start, stay, leave, reach)) if best < UNREACHABLE else None

    def _entering(self, stay: Ints) -> Ints:
        entering: Ints = np.minimum(stay + self.enter + HOP, UNREACHABLE)
        return entering

    def _walk(self, start: Ints, stay: Ints, leave: Ints, reach: Ints) -> Parts:
        """The best route: of equals the first server, then the longer hop."""
        parts: list[tuple[int, int, int]] = []
        block, server = 0, int(start.argmin())
        while True:
            stops = np.arange(reach[block, server], block, -1)
            costs = leave[stops, server] + (stops - block) * self.block[server]
            stop = int(stops[costs.argmin()])
            parts.append((server, block, stop))
            if stop == len(self.allowed):
                return tuple(parts)
            server = int((self.links.row(server) + self._entering(stay[stop])).argmin())
            block = stop

    def widest(self) -> Parts | None:
        """The route whose slowest server has the most rows/s; among these the cheapest. None if none was found.

        In large swarms no server gets more than one part, and at the rate found fewer hops win instead.
        """
        large = self.allowed.size > EXACT_CELLS
        best = self._widest_relaxed()
        parts = None if large else self.at_least(best).cheapest()
        if parts is not None or best == 0:
            return parts
        # Some server would have to serve several parts at that rate: look for the best rate that all can keep.
        rates = self.rows / np.arange(1, len(self.allowed) + 1)[:, None]
        slower = np.unique(rates[rates <= best])
        low, high = 0, len(slower)
        while low < high:
            middle = (low + high) // 2
            graph = self.at_least(float(slower[middle]))
            found = graph._furthest() if large else graph.cheapest()
            low, high, parts = (low, middle, parts) if found is None else (middle + 1, high, found)
        return parts or self.cheapest()

    def _furthest(self) -> Parts | None:
        """A route of few hops in which no server has two: each hop goes as far as any can."""
        reach = self._reach()
        free = self.links.first < UNREACHABLE
        unused = np.ones(len(free), bool)
        parts: list[tuple[int, int, int]] = []
        block = 0
        while block < len(self.allowed):
            ends = np.where(free & unused, reach[block], 0)
            ends -= (ends == len(self.allowed)) & (self.links.last == UNREACHABLE)
            server = int(ends.argmax())
            if ends[server] <= block:
                return None
            parts.append((server, block, int(ends[server])))
            block = int(ends[server])
            unused[server] = False
            free = ~self.links.shut[server]
        return tuple(parts)

    def at_least(self, rows: float) -> HopGraph:
        """The same servers, used so little that each makes `rows` rows/s."""
        counts = np.arange(1, len(self.allowed) + 1)[:, None]
        return replace(self, most=np.minimum(self.most, (self.rows / counts >= rows).sum(axis=0)))

    def _widest_relaxed(self) -> float:
        """The best rate if each hop counts alone; 0 if there is no route."""
        num_blocks, num_servers = self.allowed.shape
        reach = self._reach()
        leave = np.zeros((num_blocks + 1, num_servers))
        leave[num_blocks] = np.where(self.links.last < UNREACHABLE, np.inf, 0)
        stay = np.zeros(num_servers)
        for block in reversed(range(num_blocks)):
            at = np.flatnonzero(reach[block] > block)
            if not len(at):
                return 0.0
            stops = np.arange(block + 1, reach[block, at].max() + 1)[:, None]
            rows = np.minimum(leave[block + 1 : stops[-1, 0] + 1, at], self.rows[at] / (stops - block))
            stay = np.zeros(num_servers)
            stay[at] = np.where(stops <= reach[block, at], rows, 0).max(axis=0)
            leave[block] = -_least(-stay, self.links.shut)
        return float(np.where(self.links.first < UNREACHABLE, stay, 0).max())


def _one_window_each(allowed: Mask, most: Ints, parts: Parts, servers: list[int]) -> Mask:
    """`allowed`, with each of these servers kept to as many blocks as it can take, from its longest part's first on."""
    fewer = allowed.copy()
    for server in servers:
        _, start = max((stop - start, -start) for at, start, stop in parts if at == server)
        fewer[:-start, server] = False
        fewer[-start + most[server] :, server] = False
    return fewer
