"""What the servers of a simulated swarm know of it: the records as they were announced, at most a round of gossip old."""

from __future__ import annotations

from collections.abc import Collection

from shoal.swarm.placement.swarm_load import MAX_PLANNED_SERVERS, ServerLoad, SwarmLoad
from shoal.types import PeerId


class GossipView:
    """News are known with the next `tick`."""

    def __init__(self, num_blocks: int) -> None:
        self._num_blocks = num_blocks
        self._news: dict[PeerId, ServerLoad | None] = {}
        self._known: dict[PeerId, ServerLoad] = {}
        self._swarms: dict[frozenset[PeerId], SwarmLoad] = {}
        self._large: SwarmLoad | None = None

    def __len__(self) -> int:
        return len(self._known)

    def tell(self, peer: PeerId, load: ServerLoad | None) -> None:
        """A server's record is new, or (None) it is known to be gone."""
        self._news[peer] = load

    def tick(self) -> bool:
        """What was announced since the last tick is known; returns whether servers came, went, moved or planned."""
        changed = False
        for peer, load in self._news.items():
            before = self._known.pop(peer, None)
            if load is not None:
                self._known[peer] = load
            changed = changed or _place(before) != _place(load)
            if self._large is not None:
                if load is None:
                    self._large.drop(peer)
                else:
                    self._large.put(load)
        if self._news:
            self._swarms.clear()
        self._news.clear()
        return changed

    def swarm(self, silent: Collection[PeerId] = (), own: ServerLoad | None = None) -> SwarmLoad:
        """As a server sees it that found some others silent; it knows its `own` record at once."""
        gone = frozenset(peer for peer in silent if peer in self._known)
        if own is not None and own != self._known.get(own.peer):
            return self._all().without(gone, own)
        if gone not in self._swarms:
            self._swarms[gone] = self._all().without(gone) if gone else self._all()
        return self._swarms[gone]

    def _all(self) -> SwarmLoad:
        if len(self._known) <= MAX_PLANNED_SERVERS:
            self._large = None
            if frozenset() not in self._swarms:
                self._swarms[frozenset()] = SwarmLoad(self._num_blocks, self._known.values())
            return self._swarms[frozenset()]
        if self._large is None:
            self._large = SwarmLoad(self._num_blocks, self._known.values())
        return self._large


def _place(load: ServerLoad | None) -> tuple[object, ...] | None:
    return (load.goal, load.serves, load.moving, load.plan) if load is not None else None
