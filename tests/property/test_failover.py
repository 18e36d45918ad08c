"""Failover against servers that die, freeze, refuse, leave, lie about their progress and come back.

The world below stands for the supervisor and the network: it carries actions out on servers that are a few flags each.
"""

from __future__ import annotations

import itertools
import os
from typing import Any, Literal, get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from shoal.client.session.failover import (
    Action,
    Connect,
    Drop,
    FailoverPolicy,
    OpenSpan,
    Refresh,
    applied,
    decide,
)
from shoal.client.session.heartbeat import Heartbeat
from shoal.client.session.route_state import HopId, HopState, LinkEnds, LinkStatus, RouteState, ends_of
from shoal.client.session.selection import Constraints, select
from shoal.errors import ChannelClosed, DialError, NetworkError, NoRoute, NotHeld, ServerFull, SessionLost, ShoalError
from shoal.swarm.directory.records import ServerRecord
from shoal.types import ModelSpec, PeerId, Span
from tests.support.virtual_clock import VirtualClock

EXAMPLES = int(os.environ.get("SHOAL_FAILOVER_EXAMPLES", "40"))
pytestmark = pytest.mark.timeout(120 + 4 * EXAMPLES)

BLOCKS = Span(0, 4)
MODEL = ModelSpec("tiny", "f0" * 16, 4, 48)
SPANS = tuple(Span(start, stop) for start in range(4) for stop in range(start + 1, 5))
TICK_S = 0.125
SILENCE_S = 1.25
ORDER_S = 3.0
SLOW_S = (0.0, 5.0)
"""How long an honest server may take for a step: longer than one that hangs is given the first time."""

SETTLES_S = 60.0
"""What else has happened before is over after so long."""

LIAR_S = 10.0
"""What a server may cost at most that lies about its progress: honest ones are found after so long for each other server."""

SLOW_LIAR_S = 120.0
"""The same where the honest ones are slow themselves, so that they look like liars at first."""


def enough_s(others: int, slow_s: float) -> float:
    """In which a route must carry rows, beside so many servers that lie from the beginning."""
    return LIAR_S * others + 1.0 if not slow_s else SLOW_LIAR_S * (others + 1)


MAX_ROUNDS = 60
"""Of deciding and acting at one instant."""

Lie = Literal["", "deaf", "idle", "busy", "mute", "creeping", "sipping"]
"""It says that it has no rows, or has them and computes none, with or without steps for others, or has computed them and
sends none, or computes them one after another, or takes them so."""

RESUMED = (0, 400)
"""Rows that came back before all hops were lost: so many that one after another takes longer than any server may cost."""


class Server:
    """A server, as far as a session can tell. `life` counts its starts: sessions of an earlier one are lost."""

    def __init__(self, number: int, span: Span) -> None:
        self.peer = PeerId(f"{number:064x}")
        self.span = span
        self.record_span = span
        self.alive, self.frozen, self.full, self.leaving = True, False, False, False
        self.lie: Lie = ""
        self.slow_s = 0.0
        self.life = 0

    @property
    def answers(self) -> bool:
        """Whether it says anything."""
        return self.alive and not self.frozen

    @property
    def record(self) -> ServerRecord:
        """What it announces."""
        return ServerRecord(
            self.peer, 1, 0.0, 1e9, ("tls://127.0.0.1:1",), MODEL, self.record_span, draining=self.leaving
        )


class World:
    """Servers, a session's state, and what is under way."""

    def __init__(self, policy: FailoverPolicy) -> None:
        self.policy = policy
        self.clock = VirtualClock()
        self.servers: dict[str, Server] = {}
        self.failed: set[str] = set()
        self.cut: set[tuple[str, str]] = set()
        self.state = RouteState(BLOCKS, opened=True)
        self.lives: dict[HopId, int] = {}
        self.computed: dict[HopId, int] = {}
        self.got: dict[HopId, int] = {}
        self.works_since: dict[HopId, float] = {}
        self.heartbeats: dict[HopId, Heartbeat] = {}
        self.opening: list[tuple[float, int, list[tuple[Server, Span]]]] = []
        self.refreshed_at: float | None = None
        self.hop_ids = itertools.count(1)
        self.rows = 0

    @property
    def now(self) -> float:
        """Seconds since the world began."""
        return self.clock.monotonic()

    def add(self, span: Span) -> Server:
        """One more server."""
        server = Server(len(self.servers) + 1, span)
        self.servers[server.peer] = server
        return server

    # Time passes

    def tick(self) -> None:
        """The network does its part, then the session looks."""
        self.clock.skip(TICK_S)
        self._answer_openings()
        self._answer_refresh()
        self._flow()
        if self.state.given_up is not None:
            self.state = self.state.retry()  # as the next step does
        self.look()

    def look(self) -> None:
        """As the supervisor does it; what cannot come to rest fails here."""
        self.state = self._observed().noted(self.now)
        for _ in range(MAX_ROUNDS):
            actions = decide(self.state, self.now, self.policy)
            if not actions:
                return
            for action in actions:
                self._execute(action)
            self.state = self._observed().noted(self.now)
        raise AssertionError(f"it never comes to rest: {actions}")

    def _execute(self, action: Action) -> None:
        opening_id = self.state.openings_made
        self.state = applied(self.state, action, self.now)
        if isinstance(action, OpenSpan):
            self._choose(action, opening_id)
        elif isinstance(action, Refresh):
            self.refreshed_at = self.now
        elif isinstance(action, Drop) and action.unreachable:
            hop = self.state.hop(action.hop)
            self.failed |= {hop.peer} if hop is not None else set()
        elif isinstance(action, Connect):
            assert sum(link.ends == action.ends for link in self.state.links) == 1

    def _choose(self, action: OpenSpan, opening_id: int) -> None:
        records = [server.record for server in self.servers.values() if server.peer not in self.failed]
        try:
            hops = select(
                records, {}, Constraints(action.span, action.without, action.broken, action.numerics, bits=action.bits)
            )
        except NoRoute as error:
            self.state = self.state.not_opened(opening_id, error, self.now)
            return
        assert not {hop.peer for hop in hops} & action.without
        self.opening.append((self.now + TICK_S, opening_id, [(self.servers[hop.peer], hop.span) for hop in hops]))

    def _answer_openings(self) -> None:
        due = [one for one in self.opening if one[0] <= self.now]
        self.opening = [one for one in self.opening if one[0] > self.now]
        for _, opening_id, parts in due:
            self.state = self.state.was_opened(opening_id, [self._opened(*part) for part in parts])

    def _opened(self, server: Server, span: Span) -> HopState:
        error: ShoalError | None = None
        if not server.answers:
            error = DialError("gone")
        elif span.start < server.span.start or span.stop > server.span.stop:
            error = NotHeld("moved")
        elif server.full or server.leaving:
            error = ServerFull("full")
        hop_id = next(self.hop_ids)
        self.lives[hop_id], self.computed[hop_id], self.got[hop_id] = server.life, 0, 0
        self.heartbeats[hop_id] = Heartbeat(self.clock)
        return HopState(
            hop_id,
            server.peer,
            f"hop {hop_id}",
            span,
            joined=error is None,
            refused=error is not None,
            lost=error,
            heard_at=self.now,
            changed_at=self.now,
            stepped_at=self.now,
            worked_at=self.now,
        )

    def _answer_refresh(self) -> None:
        """Those that failed and answer now are asked again; all announce what they hold."""
        if self.refreshed_at is None or self.refreshed_at >= self.now:
            return
        self.refreshed_at = None
        for server in self.servers.values():
            if server.answers:
                server.record_span = server.span
                self.failed.discard(server.peer)
        search = msgspec.structs.replace(self.state.search, asking=False, missing=None)
        self.state = self.state.replaced(search=search)

    # What is observed

    def _observed(self) -> RouteState:
        hops = {hop.id: self._seen(hop) for hop in (*self.state.hops, *self.state.strays)}
        state = self.state.with_hops(hops)
        state = state.replaced(links=tuple(self._link(link) for link in state.links), received=self.rows)
        return state.lagging(self.now)

    def _seen(self, hop: HopState) -> HopState:
        server = self.servers[hop.peer]
        if hop.lost is not None:
            return hop
        if not server.alive:
            return msgspec.structs.replace(hop, lost=ChannelClosed("gone"))
        if server.life != self.lives[hop.id]:
            return msgspec.structs.replace(hop, lost=SessionLost("it restarted"))
        if server.frozen:
            silent = self.now - hop.heard_at > SILENCE_S
            return msgspec.structs.replace(hop, lost=NetworkError("silent") if silent else None)
        heartbeat = self.heartbeats[hop.id]
        heartbeat.hear(self._told(hop, server))
        return msgspec.structs.replace(
            hop,
            leaving=server.leaving,
            progress=heartbeat.progress,
            heard_at=heartbeat.heard_at,
            changed_at=heartbeat.changed_at,
            stepped_at=heartbeat.stepped_at,
            worked_at=heartbeat.worked_at,
        )

    def _told(self, hop: HopState, server: Server) -> Any:
        position, computed = self.got[hop.id], self.computed[hop.id]
        step_s = server.slow_s if computed else 0.0
        if server.lie:
            position = 0 if server.lie == "deaf" else self.state.end
            computed = self.state.end if server.lie == "mute" else 0
        if server.lie in ("creeping", "sipping"):
            computed = min(self.state.end, hop.progress.computed + (round(self.now / TICK_S) % 2 == 0))
            position = computed if server.lie == "sipping" else position
        steps = hop.progress.steps + (server.lie == "busy")
        return msgspec.structs.replace(hop.progress, position=position, computed=computed, step_s=step_s, steps=steps)

    def _server(self, hop_id: HopId | None) -> Server | None:
        hop = self.state.hop(hop_id)
        return None if hop is None else self.servers[hop.peer]

    def _link(self, link: LinkStatus) -> LinkStatus:
        ends = [self._server(hop_id) for hop_id in link.ends[:2] if hop_id is not None]
        if not link.made:
            there = all(server is not None and server.answers for server in ends)
            return msgspec.structs.replace(link, made=there, since=self.now)
        if self._split(link) and not link.said:
            return msgspec.structs.replace(link, said="down", said_at=self.now)
        return self._watched(link)

    def _watched(self, link: LinkStatus) -> LinkStatus:
        """What the client sees at its own ends, and at those of a link that it carries."""
        sender, receiver = self.state.hop(link.ends.sender), self.state.hop(link.ends.receiver)
        suspect = receiver or sender
        if sender is not None and receiver is not None:
            if not link.through_client:
                return link
            server = self.servers[sender.peer]
            sent = 0 if server.lie or not server.answers else self.computed[sender.id]
            suspect = receiver if sent > receiver.progress.position else sender
        if suspect is None:
            return link  # its hop is gone
        since = link.suspect_since if link.suspect == suspect.id else self.now
        return msgspec.structs.replace(link, suspect=suspect.id, suspect_since=since)

    def _split(self, link: LinkStatus) -> bool:
        sender, receiver = self._server(link.ends.sender), self._server(link.ends.receiver)
        if sender is None or receiver is None or link.through_client:
            return False
        return (sender.peer, receiver.peer) in self.cut

    # Rows

    def _flow(self) -> None:
        """Rows go as far as hops and links take them; a step that is through is followed by the next."""
        available = self.state.end
        before: HopState | None = None
        for stage in self.state.stages:
            there, leads = available, before
            for hop in stage.standbys:
                there, leads = self._pass(ends_of(leads, hop, hop is stage.standbys[0]), hop, there), hop
            available = self._pass(ends_of(before, stage.primary), stage.primary, available)
            before = stage.primary
        if self.state.stages and available >= self.state.end and self._carries(ends_of(before, None)):
            self.rows += 1
            state = self.state.progressed(self.now, self.policy.proven_s).replaced(end=self.state.end + 1)
            self.state = state.step_ended(True, self.now).step_begun(1, self.now)

    def _pass(self, ends: LinkEnds, hop: HopState, available: int) -> int:
        """What a hop has for the next one, after what comes over its link now."""
        server = self.servers[hop.peer]
        honest = server.answers and not server.lie and server.life == self.lives[hop.id] and hop.lost is None
        if honest and self._carries(ends):
            self.got[hop.id] = max(self.got[hop.id], available)
            if self.got[hop.id] > self.computed[hop.id]:
                since = self.works_since.setdefault(hop.id, self.now)
                if self.now - since >= server.slow_s:
                    self.computed[hop.id] = self.got[hop.id]
                    del self.works_since[hop.id]
        return self.computed[hop.id] if honest else 0

    def _carries(self, ends: LinkEnds) -> bool:
        return any(link.ends == ends and link.made and not self._split(link) for link in self.state.links)


class FailoverMachine(RuleBasedStateMachine):
    """Things happen to servers in any order; in the end enough of them stay."""

    @initialize(
        spans=st.lists(st.sampled_from(SPANS), min_size=1, max_size=6),
        redundancy=st.sampled_from([1, 2]),
        last_slow_s=st.sampled_from(SLOW_S),
    )
    def start(self, spans: list[Span], redundancy: int, last_slow_s: float) -> None:
        """A few servers, which cover the model or do not. Those that come last and are honest take so long for a step."""
        self.last_slow_s = last_slow_s
        self.world = World(FailoverPolicy(redundancy=redundancy, patience_s=20.0))
        self.world.state = self.world.state.step_begun(1, 0.0).replaced(end=1)
        for span in spans:
            self.world.add(span)
        self.world.look()

    def one(self, number: int) -> Server:
        """Some server."""
        servers = list(self.world.servers.values())
        return servers[number % len(servers)]

    @rule(ticks=st.integers(1, 40))
    def pass_time(self, ticks: int) -> None:
        """Up to five seconds."""
        for _ in range(ticks):
            self.world.tick()

    @rule(number=st.integers(0, 9), how=st.sampled_from(["alive", "frozen", "full", "leaving"]))
    def change(self, number: int, how: str) -> None:
        """A server dies, freezes, fills up or begins to leave, or the reverse."""
        server = self.one(number)
        setattr(server, how, not getattr(server, how))
        if how == "alive" and server.alive:
            server.life += 1

    @rule(number=st.integers(0, 9), lie=st.sampled_from(get_args(Lie)))
    def lie(self, number: int, lie: Lie) -> None:
        """A server lies about its progress from now on, or no more."""
        self.one(number).lie = lie

    @rule(number=st.integers(0, 9), slow_s=st.sampled_from(SLOW_S))
    def slow(self, number: int, slow_s: float) -> None:
        """A server takes so long for a step from now on."""
        self.one(number).slow_s = slow_s

    @rule(number=st.integers(0, 9), span=st.sampled_from(SPANS))
    def move(self, number: int, span: Span) -> None:
        """A server holds other blocks than its record says, and has no session any more."""
        server = self.one(number)
        server.span, server.life = span, server.life + 1

    @rule(sender=st.integers(0, 9), receiver=st.integers(0, 9))
    def split(self, sender: int, receiver: int) -> None:
        """One server does not reach another."""
        self.world.cut.add((self.one(sender).peer, self.one(receiver).peer))

    @rule(span=st.sampled_from(SPANS))
    def join(self, span: Span) -> None:
        """A server comes."""
        if len(self.world.servers) < 10:
            self.world.add(span)

    @invariant()
    def one_live_primary_for_every_stage(self) -> None:
        """Stages cover the span in order, each block once; no hop is in two places; no stage is opened twice."""
        if not hasattr(self, "world"):
            return
        state = self.world.state
        if state.stages:
            assert [stage.span.start for stage in state.stages[1:]] == [stage.span.stop for stage in state.stages[:-1]]
            assert (state.stages[0].span.start, state.stages[-1].span.stop) == (BLOCKS.start, BLOCKS.stop)
        assert all(stage.primary.span == stage.span for stage in state.stages)
        ids = [hop.id for hop in state.hops]
        assert len(ids) == len(set(ids))
        taking = [one for one in state.openings if not one.follow]
        for one, other in itertools.combinations(taking, 2):
            assert one.span.stop <= other.span.start or other.span.stop <= one.span.start
        for one in taking:
            inside = [stage for stage in state.stages if one.span.start <= stage.span.start < one.span.stop]
            assert not any(stage.primary.alive for stage in inside)

    @invariant()
    def one_link_between_two_ends(self) -> None:
        """A hop has one sender at most, beside the links that follow."""
        if not hasattr(self, "world"):
            return
        ends = [link.ends for link in self.world.state.links]
        assert len(ends) == len(set(ends))
        fed = [link.receiver for link in ends if link.receiver is not None]
        assert len(fed) == len(set(fed))

    def teardown(self) -> None:
        """Two honest servers come and stay: rows go through again, and then nothing is left to do."""
        if not hasattr(self, "world"):
            return
        world = self.world
        slowest_s = max(self.last_slow_s, *(server.slow_s for server in world.servers.values()))
        until = world.now + SETTLES_S + enough_s(len(world.servers), slowest_s)
        for span in (Span(0, 2), Span(2, 4)):
            world.add(span).slow_s = self.last_slow_s
        rows = world.rows
        while world.now < until and not (world.rows >= rows + 3 and world.state.whole):
            world.tick()
        assert world.state.whole, world.state
        assert world.rows >= rows + 3
        self.settle()

    def settle(self) -> None:
        """With servers that neither leave nor lie, a whole route is left alone."""
        world = self.world
        for server in world.servers.values():
            server.alive, server.frozen, server.leaving, server.lie = True, False, False, ""
            server.slow_s = 0.0
        for _ in range(400):
            world.tick()
        assert world.state.whole
        before = world.state.failovers
        for _ in range(80):
            world.tick()
        assert len(world.state.failovers) - len(before) <= 2 * len(world.cut)  # carried links are tried directly again


TestFailover = FailoverMachine.TestCase
TestFailover.settings = settings(max_examples=EXAMPLES, stateful_step_count=20, deadline=None)

LIARS = st.tuples(st.sampled_from(SPANS), st.sampled_from([lie for lie in get_args(Lie) if lie]))


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    servers=st.lists(LIARS, min_size=1, max_size=10).flatmap(
        lambda liars: st.permutations([*liars, (Span(0, 2), ""), (Span(2, 4), "")])
    ),
    redundancy=st.sampled_from([1, 2]),
    slow_s=st.sampled_from([0.0, *SLOW_S]),
    resumed=st.sampled_from(RESUMED),
)
def test_an_honest_route_is_found_beside_liars(
    servers: list[tuple[Span, Lie]], redundancy: int, slow_s: float, resumed: int
) -> None:
    """However many servers lie, in whatever way: each costs its time, and rows go through in the end, slow ones too."""
    world = World(FailoverPolicy(redundancy=redundancy, patience_s=20.0))
    world.state = world.state.step_begun(1, 0.0).replaced(end=resumed + 1)
    world.rows = resumed
    for span, lie in servers:
        server = world.add(span)
        server.lie, server.slow_s = lie, slow_s
    world.look()
    while world.rows < resumed + 3 and world.now < enough_s(len(servers) - 2, slow_s):
        world.tick()
    assert world.rows >= resumed + 3, world.state


@pytest.mark.parametrize("full", [1, 3])
def test_full_servers_keep_no_slow_one_from_being_asked(full: int) -> None:
    """A slow one was dropped once, and those that are full were not: all take turns."""
    world = World(FailoverPolicy(patience_s=20.0))
    world.state = world.state.step_begun(1, 0.0).replaced(end=1)
    for _ in range(full):
        world.add(Span(0, 2)).full = True
    for span in (Span(0, 2), Span(2, 4)):
        world.add(span).slow_s = SLOW_S[-1]
    world.look()
    while world.rows < 3 and world.now < SLOW_LIAR_S:
        world.tick()
    assert world.rows >= 3, world.state
