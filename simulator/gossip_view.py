"""What everybody in a simulated swarm knows of it: the swarm as it was announced, and the plan that goes with it."""

from __future__ import annotations

from collections.abc import Mapping

from shoal.swarm.placement.shared_plan import Plan, follow, medium, planner
from shoal.swarm.placement.swarm_load import ServerLoad, SwarmLoad
from shoal.types import PeerId, Span
from simulator.sim_server import SimServer


class GossipView:
    """`scene` is what all see: news are known with the next `tick`, and a plan with the one after it was made."""

    def __init__(self, num_blocks: int) -> None:
        self.scene = SwarmLoad(num_blocks)
        self._news: dict[PeerId, ServerLoad | None] = {}
        self._known: dict[PeerId, ServerLoad] = {}
        self._plan: Plan = ()
        self._draft: Plan | None = None

    @property
    def medium(self) -> bool:
        """Whether the swarm follows a plan."""
        return medium(len(self._known))

    def tell(self, peer: PeerId, holder: ServerLoad | None) -> None:
        """A server's record is new, or (None) it is known to be gone."""
        self._news[peer] = holder

    def tick(self, live: Mapping[PeerId, SimServer]) -> None:
        """What was announced since the last tick is known to all, and the planning server, if it is alive, plans."""
        changed = self._draft is not None
        for peer, holder in self._news.items():
            before = self._known.pop(peer, None)
            if holder is not None:
                self._known[peer] = holder
            changed = changed or _place(before) != _place(holder)
            if not self.medium:
                self.scene.drop(peer) if holder is None else self.scene.put(holder)
        self._news.clear()
        if changed and self.medium:
            self._follow(live)

    def _follow(self, live: Mapping[PeerId, SimServer]) -> None:
        if self._draft is not None:
            self._plan, self._draft = self._draft, None
        num_blocks = self.scene.num_blocks
        held = follow(num_blocks, list(self._known.values()), self._plan)
        self.scene = SwarmLoad(num_blocks, held)
        first = live.get(planner(held) or PeerId(""))
        if first is not None:
            self._draft = first.drafter.draft(num_blocks, held, first.mover.peer)


def _place(holder: ServerLoad | None) -> tuple[Span, Span | None, bool] | None:
    return (holder.goal, holder.serves, holder.moving) if holder is not None else None
