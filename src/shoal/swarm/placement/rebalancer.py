"""When a server moves to other blocks: a pure function of a snapshot, and the state machine of an announced move.

The rule that keeps every block covered: a server announces its goal (`next_span` in its record), waits for NOTICE_S, and
leaves only while somebody else serves each of its blocks *and has not announced a move*. Let Z be the last
of a block's servers to leave, at g. It saw some Y stay; its view was at most as old as the notice is long, so Y announced
after that and left no sooner than a notice later, which is after g. So whoever Z saw is still there.

Of servers that would leave the same block to nobody the one with the highest node id waits and the others withdraw.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec
import numpy as np

from shoal.swarm.directory.records import ServerRecord
from shoal.swarm.placement.beam_search import plan_moves
from shoal.swarm.placement.local_search import best_place, softest
from shoal.swarm.placement.shared_plan import agreed_holders, is_gain, medium
from shoal.swarm.placement.swarm_load import ServerLoad, SwarmLoad, best_span, worth
from shoal.types import PeerId, Span

GOSSIP_S = 3.0
NOTICE_S = 2 * GOSSIP_S
"""How long a move is announced before it begins: views of others may be as old as this."""
PATIENCE_S = 60.0
"""How long an announced move waits for others to leave no block without a server."""
REST_S = 3600.0
"""After a move on its own a server stays for as long."""
PAUSE_S = 60.0
"""After a planned move in a small swarm, or a withdrawn announcement, it waits for as long."""
TRUST_S = 180.0
"""So long a server of a medium swarm waits for a plan to see to what it would move for alone; then it moves alone."""

CLEAR_GAIN = 0.25
"""A move alone is worth it if the weakest of the blocks that it touches becomes stronger by this share."""
PLAN_SERVERS = 16
"""Up to this many servers, moves are planned together."""
PLAN_BLOCKS = 48

Action = Literal["announce", "wait", "go", "withdraw"]


class MovePlan(msgspec.Struct, frozen=True):
    """A move that has been announced, and when its blocks will be on this server's disk (infinite if that is not known).

    `agreed`: it is the swarm's plan, and not this server's own.
    """

    span: Span
    announced_at: float
    ready_at: float = 0.0
    agreed: bool = False


class Rebalancer(msgspec.Struct, frozen=True):
    """A server that may move: its id, the plan that it has announced, and until when it rests (seconds of its clock).

    `uneasy_since`: since when it has wanted to move alone, and waits for a plan instead.
    """

    peer: PeerId
    plan: MovePlan | None = None
    rests_until: float = 0.0
    uneasy_since: float | None = None


class Decision(msgspec.Struct, frozen=True):
    """What to do now. `span` is the goal of "announce" and "go", `rest_s` how long not to ask again; `why` is for people.

    `agreed` and `uneasy` are to be remembered in the plan and the mover.
    """

    action: Action
    span: Span | None = None
    rest_s: float = 0.0
    why: str = ""
    agreed: bool = False
    uneasy: bool = False


def judge_move(num_blocks: int, records: Iterable[ServerRecord], me: Rebalancer, now: float) -> Decision:
    """What a server does about moving, asked again and again; `records` hold its own.

    Without a plan: "announce" one (put it into `next_span` and into the plan), or "wait". With one: "wait", "withdraw" (take
    it out), or "go": stop serving at once and say so by draining. `records` must be no older than NOTICE_S, and hold only
    servers that are believed to be alive.
    """
    return decide(SwarmLoad(num_blocks, agreed_holders(num_blocks, records)), me, now)


def decide(scene: SwarmLoad, me: Rebalancer, now: float) -> Decision:
    """`judge_move` for a swarm that is kept as a scene."""
    mine = scene.held.get(me.peer)
    if mine is None or mine.serves is None:
        return Decision("wait", why="it does not serve")
    if me.plan is None:
        if medium(len(scene.held)) and not _small(scene):
            return _judge_planned(scene, mine, me, now)
        goal = None if now < me.rests_until else choose_move(scene, me.peer)
        return Decision("wait") if goal is None else Decision("announce", goal)
    leaves_at = max(me.plan.announced_at + NOTICE_S, me.plan.ready_at)
    if now < leaves_at:
        return Decision("wait", why="others have to hear of it, and the new blocks have to be on this disk")
    small = _small(scene)
    rivals = [h for h in scene.held.values() if h is not mine and h.moving and h.serves]
    if small and any(rival.peer > me.peer for rival in rivals):
        return Decision("withdraw", rest_s=PAUSE_S, why="in a small swarm one moves after another")
    if not me.plan.agreed and not medium(len(scene.held)) and not _still_wanted(scene, mine, me.plan.span):
        return Decision("withdraw", rest_s=PAUSE_S, why="it is no gain any more")
    uncovered = [block for block in mine.serves.blocks() if not scene.stayers[block]]
    if not uncovered:
        return Decision("go", me.plan.span, 0.0 if me.plan.agreed else PAUSE_S if small else REST_S)
    clash = any(h.peer > me.peer and h.serves and any(block in h.serves for block in uncovered) for h in rivals)
    if clash or now >= leaves_at + PATIENCE_S:
        return Decision("withdraw", rest_s=PAUSE_S, why=f"nobody else would serve block {uncovered[0]}")
    return Decision("wait", why=f"nobody else serves block {uncovered[0]} yet")


def _judge_planned(scene: SwarmLoad, mine: ServerLoad, me: Rebalancer, now: float) -> Decision:
    """A server of a medium swarm does its part of the plan, and moves alone if there is none for too long."""
    if mine.planned:
        if not _others_stay(scene, mine):
            return Decision("wait", why="it is the last one there")
        if not is_gain(scene.num_blocks, list(scene.held.values())):
            return Decision("wait", why="it does not see the use of the plan")
        return Decision("announce", mine.goal, agreed=True)
    goal = None if now < me.rests_until else _alone(scene, mine)
    if goal is None:
        return Decision("wait")
    if me.uneasy_since is None or now < me.uneasy_since + TRUST_S:
        return Decision("wait", why="a plan should see to it", uneasy=True)
    return Decision("announce", goal)


def _alone(scene: SwarmLoad, mine: ServerLoad) -> Span | None:
    """Where it would be for a clear gain of the whole swarm."""
    if not mine.stays or not mine.max_blocks or not _others_stay(scene, mine):
        return None
    there = [holder for holder in scene.held.values() if not holder.joining]
    goal, reached = best_place(scene.num_blocks, [holder for holder in there if holder is not mine], mine)
    return goal if reached > softest(scene.num_blocks, there) * (1 + CLEAR_GAIN) else None


def _others_stay(scene: SwarmLoad, mine: ServerLoad) -> bool:
    """Whether each of its blocks has another server that has announced nothing; it counts itself."""
    assert mine.serves is not None
    return bool((scene.stayers[mine.serves.start : mine.serves.stop] >= 2).all())


def choose_move(scene: SwarmLoad, me: PeerId) -> Span | None:
    """Where a server that serves and has no plan should go; None to stay.

    In a small swarm everybody makes the same plan of up to PLAN_MOVES moves, the server that comes first in it moves, and
    the next one when it has gone. In larger ones a server moves on its own for a clear gain; in a medium one only if no plan
    comes (`decide`).
    """
    mine = scene.held.get(me)
    if mine is None or not mine.stays or not mine.max_blocks:
        return None
    if _small(scene):
        if any(holder.moving and holder.serves for holder in scene.held.values()):
            return None
        # nobody moves on its own beside the plan: it would undo what a plan has begun
        plan = plan_moves(scene.num_blocks, list(scene.held.values()))
        return plan[0][1] if plan and plan[0][0] == me else None
    if not _others_stay(scene, mine):
        return None
    goal = best_span(scene, mine.max_blocks, mine.block_rows_per_s, but=mine)
    return goal if _gain(scene, mine, goal) > CLEAR_GAIN else None


def _before(holder: ServerLoad) -> ServerLoad:
    """A server as if it had announced nothing."""
    return msgspec.structs.replace(holder, goal=holder.serves, moving=False) if holder.serves else holder


def _still_wanted(scene: SwarmLoad, mine: ServerLoad, goal: Span) -> bool:
    """Whether a move that was announced is still worth it, seen from where the server is."""
    if _small(scene):
        plan = plan_moves(scene.num_blocks, [_before(holder) for holder in scene.held.values()])
        return bool(plan) and plan[0] == (mine.peer, goal)
    there = SwarmLoad(scene.num_blocks, (_before(h) if h is mine else h for h in scene.held.values()))
    return _gain(there, there.held[mine.peer], goal) > CLEAR_GAIN / 2


def _small(scene: SwarmLoad) -> bool:
    return len(scene.held) <= PLAN_SERVERS and scene.num_blocks <= PLAN_BLOCKS


def _gain(scene: SwarmLoad, mine: ServerLoad, goal: Span) -> float:
    """By what share the weakest of the blocks that the move touches becomes stronger; the order of all strengths, the
    weakest first, then grows, so that moves of this kind come to an end."""
    strength, count = scene.without(mine)
    strength[goal.start : goal.stop] += mine.block_rows_per_s / len(goal)
    count[goal.start : goal.stop] += 1
    after, before = worth(strength, count), worth(scene.strength, scene.holders)
    touched = np.abs(after - before) > 1e-9 * before
    if not touched.any():
        return 0.0
    weakest = float(before[touched].min())
    return float(after[touched].min()) / weakest - 1 if weakest > 0 else float(after[touched].min() > 0)
