"""When a server moves to other blocks: a state machine without I/O, tasks or a clock of its own.

The rule that keeps every block covered: a server announces its goal (`next_span` in its record), waits for NOTICE_S, and
leaves only while another server serves each of its blocks *and has not announced a move*. Let Z be the last
of a block's servers to leave, at g. It saw some Y stay; its view was at most as old as the notice is long, so Y announced
after that and left no sooner than a notice later, which is after g. So the server that Z saw is still there.

Of servers that would leave the same block to no server the one with the highest node id waits and the others withdraw.
"""

from __future__ import annotations

import math
import random

import msgspec

from shoal.swarm.directory.records import KEY_DIGITS
from shoal.swarm.placement.block_inventory import BlockInventory
from shoal.swarm.placement.local_search import best_move, plan_moves
from shoal.swarm.placement.swarm_load import Plan, ServerLoad, SwarmLoad
from shoal.types import PeerId, Span

GOSSIP_S = 3.0
NOTICE_S = 2 * GOSSIP_S
"""How long a move is announced before it begins: views of others may be as old as this."""
PATIENCE_S = 60.0
"""How long an announced move waits for others to leave no block without a server."""
LOOK_S = 60.0
"""How often a server asks itself whether to move alone; a quarter more or less, by chance."""
WATCH_S = 15.0
"""How often the author of the plan, and the next one, ask whether the others are alive; no planned move is announced on older
answers."""
RETRY_S = 1.0
"""How often a server that has announced a move looks whether it may go."""
TRUST_S = 180.0
"""How long a server waits for a plan to see to what it would move for alone."""
REST_S = 3600.0
"""How long a server stays after a move on its own."""
PAUSE_S = 60.0
"""After a withdrawn announcement."""
FAILED_REST_S = 600.0
"""After a move that failed: other servers do not count on this one's moving (`movable`)."""
FETCH_RETRY_S = 60.0
CLEAR_GAIN = 1.25
"""A move alone is worth it if the soft minimum grows by this factor."""
STILL_GAIN = 1.125
"""And is made if it would, from where the server is, still grow by this one."""


class Ask(msgspec.Struct, frozen=True):
    """Exchange records with these servers (None: with some, by chance), then report `asked`."""

    peers: tuple[PeerId, ...] | None = None


class Publish(msgspec.Struct, frozen=True):
    """Put this plan into the record."""

    plan: Plan


class Announce(msgspec.Struct, frozen=True):
    """Put this goal into the record."""

    span: Span


class Withdraw(msgspec.Struct, frozen=True):
    """Take the goal out of the record."""

    why: str


class Move(msgspec.Struct, frozen=True):
    """Stop serving at once, say so, and serve this span; then report `moved`."""

    span: Span


Action = Ask | Publish | Announce | Withdraw | Move


class Decision(msgspec.Struct, frozen=True):
    """What a server does now, and when it decides again at the latest: at once after an action. `why` it waits, for people."""

    action: Action | None
    wake_at: float
    why: str = ""


class Announced(msgspec.Struct, frozen=True):
    """A move that was announced; `shared`: it is the shared plan's."""

    span: Span
    at: float
    shared: bool


class Rebalancer:
    """Decides for one server. `inventory`: the blocks on its disk, told by whoever fetches."""

    def __init__(self, peer: PeerId, inventory: BlockInventory, rng: random.Random) -> None:
        self.peer = peer
        self.inventory = inventory
        self.announced: Announced | None = None
        self._rng = rng
        self._rests_until = -math.inf
        self._failed_until = -math.inf
        self._fetches_at = -math.inf
        self._wants_since: float | None = None
        self._looks_at: float | None = None
        self._watches_at = -math.inf
        self._asked_at = -math.inf
        self._known: dict[PeerId, Span | None] | None = None
        self._failure = ""

    def movable(self, now: float) -> bool:
        """Whether other servers may count on its moving."""
        return now >= self._failed_until

    def asked(self, now: float) -> None:
        """The servers that were to be asked have answered, or are not in the view any more."""
        self._asked_at = now

    def moved(self, arrived: bool, now: float) -> None:
        """A move has ended: the server serves its goal, or (False) its old span."""
        shared = self.announced is not None and self.announced.shared
        self.announced = self._known = None
        self._rest(0.0 if shared else REST_S, now)
        if not arrived:
            self._fail(now)

    def fetch_failed(self, why: str, now: float) -> None:
        """The block that was to be fetched cannot be, for the time being."""
        self._fetches_at = now + FETCH_RETRY_S
        if self.announced is not None:
            self._failure = why

    def decide(self, swarm: SwarmLoad, now: float) -> Decision:
        """What to do. `swarm` is at most NOTICE_S old: this server as it announced itself, and others believed to be alive."""
        if self._looks_at is None:
            self._looks_at = now + self._rng.uniform(0, LOOK_S)
        mine = swarm.servers.get(self.peer)
        if mine is None or mine.serves is None:
            return Decision(None, math.inf, why="it does not serve")
        if self.announced is not None:
            return self._carry_on(swarm, mine, self.announced, now)
        decision = self._author(swarm, now)
        if decision is not None:
            return decision
        return self._follow(swarm, mine, now) if mine.planned else self._alone(swarm, mine, now)

    def _author(self, swarm: SwarmLoad, now: float) -> Decision | None:
        """The author of the plan, and the server that would be next, know who is alive; the author plans when there is news.

        A former author takes its plan back: else it would count again, old as it is, when those before it are gone.
        """
        if self.peer not in swarm.watchers:
            self._watches_at = -math.inf
        elif now >= self._watches_at:
            self._watches_at = now + WATCH_S
            return Decision(self._ask_all(swarm), now)
        if swarm.author != self.peer:
            self._known = None
            return Decision(Publish(()), now) if swarm.servers[self.peer].plan else None
        there = {server.peer: server.serves for server in swarm.servers.values() if not server.joining}
        if not self._is_news(there):
            return None
        self._known = there
        plan = tuple((peer[:KEY_DIGITS], span) for peer, span in plan_moves(swarm).items())
        return Decision(Publish(plan), now) if plan != swarm.servers[self.peer].plan else None

    def _is_news(self, there: dict[PeerId, Span | None]) -> bool:
        """Whether a server is gone, or serves now what it did not; that one leaves for its goal is none."""
        known = self._known
        if known is None:
            return True
        new = any(span is not None and known.get(peer) != span for peer, span in there.items())
        return new or known.keys() - there.keys() != set()

    def _follow(self, swarm: SwarmLoad, mine: ServerLoad, now: float) -> Decision:
        """The plan moves this server: it fetches what it lacks, and announces the move if it sees its use."""
        if now < self._rests_until:
            return self._wait(mine, now, "it rests")
        if self.inventory.lacks(mine.goal):
            return self._wait(mine, now, "it fetches for the plan")
        if not swarm.others_stay(mine):
            return self._wait(mine, now, "it is the last one there")
        if now - self._asked_at > WATCH_S:
            return Decision(self._ask_all(swarm), now)
        if not swarm.gain(one for one in swarm.servers.values() if one.planned) > 1:
            return self._wait(mine, now, "it does not see the use of the plan")
        return self.announce(mine.goal, True, now)

    def _alone(self, swarm: SwarmLoad, mine: ServerLoad, now: float) -> Decision:
        """No plan moves this server: now and then it looks whether it would be a clear gain."""
        assert self._looks_at is not None
        if now < self._looks_at:
            return self._wait(mine, now, "")
        if self._asked_at < self._looks_at:
            return Decision(Ask(), now)
        self._looks_at = now + LOOK_S * self._rng.uniform(0.75, 1.25)
        goal = None if now < self._rests_until else _clear_gain(swarm, mine)
        if goal is None:
            self._wants_since = None
            return self._wait(mine, now, "")
        self._wants_since = now if self._wants_since is None else self._wants_since
        if swarm.author is not None and now < self._wants_since + TRUST_S:
            return self._wait(mine, now, "a plan should see to it")
        return self.announce(goal, False, now)

    def _carry_on(self, swarm: SwarmLoad, mine: ServerLoad, announced: Announced, now: float) -> Decision:
        """A move has been announced: go, wait or withdraw."""
        assert mine.serves is not None
        if self._failure:
            withdrawal = self._withdraw(f"blocks {announced.span} cannot be fetched ({self._failure})", now)
            self._fail(now)
            return withdrawal
        if self.inventory.lacks(announced.span):
            return self._wait(mine, now, "the new blocks have to be on this disk")
        leaves_at = announced.at + NOTICE_S
        if now < leaves_at:
            return Decision(None, leaves_at, why="others have to hear of it")
        if not announced.shared and swarm.gain([mine]) < STILL_GAIN:
            return self._withdraw("it is no gain any more", now)
        uncovered = swarm.uncovered_without(mine)
        if not uncovered:
            if now - self._asked_at > RETRY_S:
                return Decision(self._ask_counted(swarm, mine), now)
            return Decision(Move(announced.span), math.inf)
        rivals = [one for one in swarm.servers.values() if one.moving and one.serves and one.peer > self.peer]
        if any(block in one.serves for one in rivals for block in uncovered if one.serves):
            return self._withdraw(f"no other server would serve block {uncovered[0]}", now)
        if now >= leaves_at + PATIENCE_S:
            return self._withdraw(f"no other server would serve block {uncovered[0]}", now)
        return self._wait(mine, now, f"no other server serves block {uncovered[0]} yet")

    def _ask_all(self, swarm: SwarmLoad) -> Ask:
        return Ask(tuple(peer for peer in swarm.servers if peer != self.peer))

    def _ask_counted(self, swarm: SwarmLoad, mine: ServerLoad) -> Ask:
        """The servers that it counts on to stay."""
        return Ask(tuple(one.peer for one in swarm.servers.values() if one is not mine and _shares(one, mine)))

    def announce(self, goal: Span, shared: bool, now: float) -> Decision:
        """Begin a move: of the `shared` plan, or alone."""
        self.announced, self._failure = Announced(goal, now, shared), ""
        return Decision(Announce(goal), now)

    def _withdraw(self, why: str, now: float) -> Decision:
        self.announced = None
        self._rest(PAUSE_S, now)
        return Decision(Withdraw(why), now)

    def _rest(self, seconds: float, now: float) -> None:
        self._rests_until, self._wants_since = now + seconds, None

    def _fail(self, now: float) -> None:
        self._failed_until = now + FAILED_REST_S
        self._rests_until = now + FAILED_REST_S

    def _wait(self, mine: ServerLoad, now: float, why: str) -> Decision:
        assert self._looks_at is not None
        if self.announced is not None:
            return Decision(None, now + RETRY_S, why)
        watches_at = self._watches_at if self._watches_at > -math.inf else math.inf
        again_at = now + WATCH_S if mine.planned else self._looks_at
        return Decision(None, min(watches_at, again_at), why)

    def next_fetch(self, swarm: SwarmLoad, now: float) -> int | None:
        """The block that an idle line should fetch: of the goal, else, where a plan is followed, the nearest to its own."""
        mine = swarm.servers.get(self.peer)
        if mine is None or mine.serves is None or now < self._fetches_at:
            return None
        goal = self.announced.span if self.announced is not None else mine.goal if mine.planned else None
        if swarm.author is None and not (goal and self.inventory.lacks(goal)):
            return None
        return self.inventory.next_block(mine.serves, goal)


def _clear_gain(swarm: SwarmLoad, mine: ServerLoad) -> Span | None:
    """Where it would go alone for a clear gain of the whole swarm."""
    if not mine.max_blocks or swarm.best_gain(mine.max_blocks) < CLEAR_GAIN or not swarm.others_stay(mine):
        return None
    goal, gain = best_move(swarm, mine)
    return goal if gain > CLEAR_GAIN else None


def _shares(one: ServerLoad, mine: ServerLoad) -> bool:
    """Whether a server stays at a block of this one."""
    if not one.committed or one.serves is None or mine.serves is None:
        return False
    return one.serves.start < mine.serves.stop and mine.serves.start < one.serves.stop
