"""The plan that a swarm of medium size agrees on: who writes it, whom it moves, and when it is written anew.

Single moves get stuck far below what the servers could give, and a plan that everybody makes alone is a different one as
soon as views differ or the first of its moves is made. So one server writes it: the first, by node id, of those that serve. It
stands in that server's record, and everybody counts those that it moves at their goals. Each decides alone whether to follow.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from shoal.swarm.directory.records import KEY_DIGITS, ServerRecord
from shoal.swarm.placement.local_search import best_place, plan_together, softest
from shoal.swarm.placement.swarm_load import ServerLoad, choose_span, holders, usual_rate
from shoal.types import PeerId, Span

LEAST_SERVERS, MOST_SERVERS = 17, 128
"""From so many to so many servers one of them plans; fewer find the same best moves by themselves, more need no plan."""

Plan = tuple[tuple[str, Span], ...]
"""(the first digits of a node id, where that server should go)."""


def medium(num_servers: int) -> bool:
    """Whether a swarm of so many servers follows a plan."""
    return LEAST_SERVERS <= num_servers <= MOST_SERVERS


def planner(held: Iterable[ServerLoad]) -> PeerId | None:
    """Whose plan counts: the first of those that serve."""
    return min((holder.peer for holder in held if holder.serves is not None), default=None)


def agreed_holders(num_blocks: int, records: Iterable[ServerRecord]) -> list[ServerLoad]:
    """`holders`, with those that the swarm's plan moves at their goals."""
    known = list(records)
    held = holders(num_blocks, known)
    if not medium(len(held)):
        return held
    first = planner(held)
    return follow(num_blocks, held, next((record.plan for record in known if record.peer == first), ()))


def follow(num_blocks: int, held: Sequence[ServerLoad], plan: Plan) -> list[ServerLoad]:
    """Servers as a plan has them; what a plan cannot ask of a server is passed over."""
    goals = dict(plan)
    return [
        msgspec.structs.replace(holder, goal=goal)
        if (goal := goals.get(holder.peer[:KEY_DIGITS])) and _possible(num_blocks, holder, goal)
        else holder
        for holder in held
    ]


def _possible(num_blocks: int, holder: ServerLoad, goal: Span) -> bool:
    return holder.stays and 0 <= goal.start < goal.stop <= num_blocks and len(goal) <= holder.max_blocks


def choose_place(num_blocks: int, count: int, records: Iterable[ServerRecord], fewest: int = 1) -> Span:
    """`choose_span` for a joining server that has not measured itself; in a medium swarm by the measure of its plans."""
    known = list(records)
    held = agreed_holders(num_blocks, known)
    if fewest > 1 or not medium(len(held)):
        return choose_span(num_blocks, count, known, fewest=fewest)
    nowhere = Span(0, 1)
    return best_place(num_blocks, held, ServerLoad(PeerId(""), nowhere, nowhere, False, usual_rate(held), count))[0]


def is_gain(num_blocks: int, held: Sequence[ServerLoad]) -> bool:
    """Whether the weakest blocks become stronger, softly counted, by what is planned; who has not served yet is left out."""
    there = [holder for holder in held if not holder.joining]
    return softest(num_blocks, there) > softest(num_blocks, [before(holder) for holder in there])


def before(holder: ServerLoad) -> ServerLoad:
    """A server as if nothing were planned for it."""
    return msgspec.structs.replace(holder, goal=holder.serves) if holder.planned and holder.serves else holder


class PlanAuthor:
    """What the planning server remembers: who served what when it last planned. Without news there is nothing to plan."""

    def __init__(self) -> None:
        self._known: dict[PeerId, Span | None] | None = None

    def draft(self, num_blocks: int, held: Sequence[ServerLoad], me: PeerId) -> Plan | None:
        """The plan that this server should publish now; None if what it published stands, or planning is not its turn.

        `held` are the servers as the present plan has them.
        """
        if not medium(len(held)) or planner(held) != me:
            self._known = None
            return None
        there = {holder.peer: holder.serves for holder in held if not holder.joining}
        if not self._is_news(there):
            return None
        self._known = there
        moves = plan_together(num_blocks, [holder for holder in held if not holder.joining])
        return tuple((peer[:KEY_DIGITS], span) for peer, span in moves.items())

    def _is_news(self, there: dict[PeerId, Span | None]) -> bool:
        """Whether somebody is gone, or serves now what it did not; that somebody leaves for its goal is none."""
        known = self._known
        if known is None:
            return True
        return (
            any(span is not None and known.get(peer) != span for peer, span in there.items())
            or known.keys() - there.keys() != set()
        )
