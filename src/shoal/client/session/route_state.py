"""What a session knows of its route: frozen values, and how one becomes the next. No I/O, no clock.

`failover.decide` judges a state; `supervisor` observes, acts and keeps the present one. A hop is named by a number that the
supervisor draws; None is the client. Times are monotonic seconds.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import msgspec

from shoal.errors import CapacityError, NoRoute, PeerError, ShoalError
from shoal.links.link import LinkKey
from shoal.protocol.journal import FRAME_ROWS
from shoal.protocol.messages import Numerics, Pong
from shoal.types import PeerId, Span

HopId = int

WEIGHT = 0.2
"""Of a new step in the usual length of a decoding step."""

NO_LENIENCE = -1
"""No server that is avoided is asked."""

DECODE_ROWS = 8
"""A step of at most so many rows is a decoding step."""


class HopState(msgspec.Struct, frozen=True):
    """What is known of a hop.

    `joined`: it obeyed when it was placed. `refused`: it was asked to open the session, and its error is the answer.
    `lost`: why it is of no use any more; `dropped`: that has been acted on. `heard_at`: when it last said anything;
    `changed_at`, `stepped_at`, `worked_at`: see `Heartbeat`. `delivers_since`: when the first rows came back that had gone
    through it. `retries`: links of it that were made anew while the rows behind
    them stayed at `retried_at`.
    """

    id: HopId
    peer: PeerId
    name: str
    span: Span
    joined: bool = True
    refused: bool = False
    lost: ShoalError | None = None
    dropped: bool = False
    leaving: bool = False
    progress: Pong = Pong(0, 0.0, 0.0)
    heard_at: float = 0.0
    changed_at: float = 0.0
    stepped_at: float = 0.0
    worked_at: float = 0.0
    delivers_since: float = math.inf
    probed_at: float = -math.inf
    retries: int = 0
    retried_at: int = -1

    @property
    def alive(self) -> bool:
        """Whether rows may go through it."""
        return self.lost is None

    def retried(self, computed: int) -> HopState:
        """One of its links is made anew because no rows came over it: those that it leads to have `computed` so many."""
        retries = self.retries + 1 if computed == self.retried_at else 1
        return msgspec.structs.replace(self, retries=retries, retried_at=computed)


class Stage(msgspec.Struct, frozen=True):
    """A place in the route: the hop that holds it, and hops that cover it together and stand by.

    `in_doubt`: they stand by only until it is clear that the hop computes, and stays. `lenience`: see `Search`. `unfound`: the
    last look for such hops found none.
    """

    span: Span
    primary: HopState
    standbys: tuple[HopState, ...] = ()
    look_again_at: float = 0.0
    in_doubt: bool = False
    lenience: int = NO_LENIENCE
    unfound: bool = False

    @property
    def ready(self) -> bool:
        """Whether live hops stand by."""
        return bool(self.standbys) and all(hop.alive for hop in self.standbys)

    @property
    def hops(self) -> tuple[HopState, ...]:
        """All of them, the primary first."""
        return (self.primary, *self.standbys)


LinkEnds = LinkKey[HopId]
"""Between whom a link is; None is the client."""


def ends_of(sender: HopState | None, receiver: HopState | None, follows: bool = False) -> LinkEnds:
    """The ends of a link between two hops."""
    return LinkKey(sender.id if sender is not None else None, receiver.id if receiver is not None else None, follows)


class LinkStatus(msgspec.Struct, frozen=True):
    """A link that was ordered. `made`: both ends have obeyed. `said`: the sender's last word of it, at `said_at`.

    `lags_at`: so many rows its receiver has, or less than a frame of rows more, and its sender has had more since `lags_since`;
    None: it lacks none. `suspect`: where the client is an end, or carries the link, it sees for itself who keeps rows back
    now, and has seen nothing else since `suspect_since`.
    """

    ends: LinkEnds
    generation: int = 0
    since: float = 0.0
    made: bool = True
    through_client: bool = False
    said: Literal["", "ready", "up", "down", "gone"] = ""
    said_at: float = 0.0
    said_position: int = 0
    lags_at: int | None = None
    lags_since: float = 0.0
    suspect: HopId | None = None
    suspect_since: float = 0.0


class Opening(msgspec.Struct, frozen=True):
    """Servers are being asked to open the session over `span`, to follow its hop or to take its place."""

    id: int
    span: Span
    since: float
    follow: bool = False


class Step(msgspec.Struct, frozen=True):
    """The step under way, or the last one. What took long before `since` is explained.

    `expected_s`: the usual length of a decoding step. `relieved`: stages where it went on at a hop that stood by.
    """

    active: bool = False
    rows: int = 0
    since: float = 0.0
    expected_s: float = 0.0
    relieved: tuple[Span, ...] = ()


class Search(msgspec.Struct, frozen=True):
    """The search for servers of blocks that have none. `missing`: what the last look lacked; `refusal`: what a server said.

    `asked`: the swarm was asked for news once. The search ends at `deadline`; the next look is at `retry_at`. `lenience`:
    servers of at most this rank are asked although they are avoided. `refused`: how often each had no room, so that all take
    turns.
    """

    missing: NoRoute | None = None
    refusal: ShoalError | None = None
    asked: bool = False
    asking: bool = False
    deadline: float | None = None
    retry_at: float | None = None
    lenience: int = NO_LENIENCE
    refused: Mapping[str, int] = {}

    def after(self, refused: str | None) -> Search:
        """When a hop was dropped: others come first, who may have come since. `refused`: by whom, if that passes."""
        counts = self.refused if refused is None else {**self.refused, refused: self.refused.get(refused, 0) + 1}
        return msgspec.structs.replace(self, lenience=NO_LENIENCE, refused=counts)


class FailoverEvent(msgspec.Struct, frozen=True):
    """One repair: why, from when to when (monotonic seconds), which servers went and came, rows sent again to them.

    `missing`: the blocks that were waited for.
    """

    reason: str
    began_at: float
    ended_at: float = 0.0
    lost: tuple[str, ...] = ()
    found: tuple[str, ...] = ()
    replayed_rows: int = 0
    missing: str = ""


class Arithmetic(msgspec.Struct, frozen=True):
    """The arithmetic of a session so far: of each block its kernel's key and its weights' digest.

    `exact` until rows have gone through arithmetic that gives other bits than the first hops'. `bits` are each block's bits per
    weight by its server's word: no digest stands in a record, so by them servers of equal weights are looked for.
    """

    exact: bool = True
    blocks: Mapping[int, tuple[str, str]] = {}
    bits: Mapping[int, float] = {}

    def key(self, span: Span) -> str | None:
        """The numerics that all blocks of a span had, if they had one."""
        keys = {self.blocks[block][0] for block in span.blocks() if block in self.blocks}
        return next(iter(keys)) if len(keys) == 1 else None

    def bits_of(self, span: Span) -> float | None:
        """The bits per weight that all blocks of a span had, if they had the same and were told."""
        told = {self.bits[block] for block in span.blocks() if block in self.bits}
        return next(iter(told)) or None if len(told) == 1 else None

    def compared(
        self, span: Span, numerics: Numerics, weights: Sequence[str], fresh: bool
    ) -> tuple[Mapping[int, tuple[str, str]], bool]:
        """The blocks with those of one more hop, and whether it gives the same bits. `fresh`: no row was computed yet."""
        blocks, same = dict(self.blocks), numerics.exact
        for block, digest in zip(span.blocks(), weights, strict=True):
            mine = (numerics.key, digest)
            blocks[block] = mine if fresh else blocks.get(block, mine)
            same = same and blocks[block] == mine
        return blocks, same

    def told(self, span: Span, bits: float, fresh: bool) -> Mapping[int, float]:
        """Each block's bits with those of one more hop; `fresh`: no row was computed yet."""
        new = dict.fromkeys(span.blocks(), bits)
        return {**self.bits, **new} if fresh else {**new, **self.bits}


class RouteState(msgspec.Struct, frozen=True):
    """A session's route. `stages` cover `span` in order, or there are none yet; a lost primary stays until it is replaced.

    `strays`: hops that came to nothing and are not dropped yet. `epoch`, `end`: the client's stream. `avoided`: servers
    not to choose, until when; `drops`: how often hops were dropped there, unless one has proven itself since;
    `lost_at`: when hops were lost there. `unreachable`: pairs of servers of which the first does not reach the second.
    `replacements`: stages replaced since a row came. `opened`: the route was whole once. `failover`: the repair under
    way; `given_up`: why there is none. `received`: rows that have come back to the client. `liars`: servers that were
    caught, which are not forgiven. `suspicions`: how often a hop behind a server had what that one may have made wrong.
    `faults`: what servers did in this step, by their names; `blamed`: servers that were at fault since a row came;
    `remade`: links made anew in this step. `private`: no other process can have taken the session up. `carried`:
    whether rows could go through at the last look. `refreshed_at`: when the swarm was asked for news last.
    """

    span: Span
    stages: tuple[Stage, ...] = ()
    links: tuple[LinkStatus, ...] = ()
    openings: tuple[Opening, ...] = ()
    strays: tuple[HopState, ...] = ()
    step: Step = Step()
    epoch: int = 0
    end: int = 0
    search: Search = Search()
    avoided: Mapping[str, float] = {}
    drops: Mapping[str, int] = {}
    lost_at: Mapping[str, float] = {}
    unreachable: frozenset[tuple[str, str]] = frozenset()
    arithmetic: Arithmetic = Arithmetic()
    replacements: int = 0
    openings_made: int = 0
    opened: bool = False
    failover: FailoverEvent | None = None
    failovers: tuple[FailoverEvent, ...] = ()
    given_up: ShoalError | None = None
    received: int = 0
    liars: frozenset[str] = frozenset()
    suspicions: Mapping[str, int] = {}
    faults: Mapping[str, str] = {}
    blamed: frozenset[str] = frozenset()
    remade: frozenset[LinkEnds] = frozenset()
    private: bool = False
    carried: bool = False
    refreshed_at: float = -math.inf

    # What follows from it

    @property
    def primaries(self) -> tuple[HopState, ...]:
        """The hops that rows go through, in order."""
        return tuple(stage.primary for stage in self.stages)

    @property
    def hops(self) -> Iterator[HopState]:
        """Those that stand by as well."""
        for stage in self.stages:
            yield from stage.hops

    def hop(self, hop_id: HopId | None) -> HopState | None:
        """A hop by its number."""
        return next((hop for hop in (*self.hops, *self.strays) if hop.id == hop_id), None)

    def behind(self, hop: HopState) -> bool:
        """Whether a hop has rows still to compute."""
        return hop.progress.epoch < self.epoch or hop.progress.computed < self.end

    def replacing(self, stage: Stage) -> bool:
        """Whether servers are being asked to take a stage's place."""
        return any(not one.follow and one.span.start <= stage.span.start < one.span.stop for one in self.openings)

    def lost_runs(self) -> list[Span]:
        """Neighbouring stages without a live hop, joined to spans, unless servers are being asked already."""
        if not self.stages:
            return [] if any(not one.follow for one in self.openings) else [self.span]
        runs: list[Span] = []
        for stage in self.stages:
            if stage.primary.alive or self.replacing(stage):
                continue
            if runs and runs[-1].stop == stage.span.start:
                runs[-1] = Span(runs[-1].start, stage.span.stop)
            else:
                runs.append(stage.span)
        return runs

    def wanted_links(self) -> list[LinkEnds]:
        """Every link that should be: from end to end, and to those that stand by. None from or to a lost hop."""
        nodes: list[HopState | None] = [None, *self.primaries, None]
        pairs = [(before, after, False) for before, after in itertools.pairwise(nodes)] if self.stages else []
        for before, stage in zip(nodes, self.stages, strict=False):
            if stage.ready:
                pairs.append((before, stage.standbys[0], True))
                pairs += [(one, other, False) for one, other in itertools.pairwise(stage.standbys)]
        return [
            ends_of(before, after, follow)
            for before, after, follow in pairs
            if (before is None or before.alive) and (after is None or after.alive)
        ]

    @property
    def whole(self) -> bool:
        """Whether live hops cover the span, and every link that should be is made."""
        return self._joined(self.wanted_links())

    @property
    def carries(self) -> bool:
        """The same, leaving aside hops that stand by."""
        route = {hop.id for hop in self.primaries} | {None}
        return self._joined([ends for ends in self.wanted_links() if not ends.follows and route.issuperset(ends[:2])])

    def _joined(self, links: Iterable[LinkEnds]) -> bool:
        if not self.stages or not all(hop.alive for hop in self.primaries):
            return False
        made = {link.ends for link in self.links if link.made}
        return made.issuperset(links)

    # What becomes of it

    def replaced(self, **fields: Any) -> RouteState:
        """With other fields."""
        return msgspec.structs.replace(self, **fields)

    def with_hops(self, hops: Mapping[HopId, HopState]) -> RouteState:
        """With other states of some hops."""
        stages = tuple(
            msgspec.structs.replace(
                stage,
                primary=hops.get(stage.primary.id, stage.primary),
                standbys=tuple(hops.get(hop.id, hop) for hop in stage.standbys),
            )
            for stage in self.stages
        )
        return self.replaced(stages=stages, strays=tuple(hops.get(hop.id, hop) for hop in self.strays))

    def noted(self, now: float) -> RouteState:
        """A repair begins when the route is not whole, and ends when it is. Nothing took too long until rows can go through."""
        if self.carries != self.carried:
            return (self if self.carried else self.explained(now)).replaced(carried=not self.carried).noted(now)
        if self.failover is None and self.given_up is None and not self.whole:
            reasons = "; ".join(f"{hop.name}: {hop.lost}" for hop in self.primaries if hop.lost is not None)
            return self.replaced(failover=FailoverEvent(reasons or "joining", now))
        if self.failover is not None and self.whole:
            event = msgspec.structs.replace(self.failover, ended_at=now)
            # A step that gets no rows through whole routes either is not waited for any longer than one without a route.
            search = Search(deadline=self.search.deadline if self.step.active else None)
            return self.replaced(failover=None, failovers=(*self.failovers, event), search=search, opened=True)
        return self

    def explained(self, now: float) -> RouteState:
        """What took long until now has had its reason."""
        return self.replaced(step=msgspec.structs.replace(self.step, since=now))

    def step_begun(self, rows: int, now: float) -> RouteState:
        """A step is under way."""
        search = msgspec.structs.replace(self.search, deadline=None)
        return self.replaced(step=Step(True, rows, now, self.step.expected_s), remade=frozenset(), search=search)

    def step_ended(self, done: bool, now: float) -> RouteState:
        """It is over; `done`: with its rows. Decoding steps tell what is usual."""
        expected_s, elapsed_s = self.step.expected_s, now - self.step.since
        if done and self.step.rows <= DECODE_ROWS:
            expected_s += (elapsed_s - expected_s) * (WEIGHT if expected_s else 1.0)
        step = msgspec.structs.replace(self.step, active=False, expected_s=expected_s)
        return self.replaced(step=step, faults={} if done else self.faults)

    def lagging(self, now: float) -> RouteState:
        """Notes since when receivers have lacked rows that their senders have, whatever else either says meanwhile."""
        return self.replaced(links=tuple(self._lagging(link, now) for link in self.links))

    def _lagging(self, link: LinkStatus, now: float) -> LinkStatus:
        sender, receiver = self.hop(link.ends.sender), self.hop(link.ends.receiver)
        has = self.received if receiver is None else receiver.progress.position
        there = self.end if sender is None else sender.progress.computed
        if sender is not None and sender.progress.epoch < self.epoch:
            there = 0
        if receiver is not None and receiver.progress.epoch < self.epoch:
            has = -1
        if not link.made or there <= has:
            return link if link.lags_at is None else msgspec.structs.replace(link, lags_at=None)
        if link.lags_at is not None and link.lags_at <= has < link.lags_at + FRAME_ROWS:
            return link  # fewer may only seem to come through
        return msgspec.structs.replace(link, lags_at=has, lags_since=now)

    def dropped(
        self, hop_id: HopId, error: ShoalError, avoid_until: float, now: float, lied: bool = False
    ) -> RouteState:
        """A hop is of no use any more. One that stands by goes with all that stand by with it; `lied`: never again."""
        hop = self.hop(hop_id)
        if hop is None:
            return self
        gone = msgspec.structs.replace(hop, lost=hop.lost or error, dropped=True)
        at_fault = hop.lost is None or isinstance(error, PeerError)
        blamed = at_fault and not hop.refused and avoid_until > now
        passes = hop.refused and isinstance(error, CapacityError)
        counts = avoid_until > now and not passes and self.avoided.get(hop.peer) != avoid_until  # once for all its hops
        stages = tuple(_without_standby(stage, hop) for stage in self.stages)
        return self.replaced(
            stages=stages,
            strays=tuple(one for one in self.strays if one.id != hop_id),
            avoided={**self.avoided, hop.peer: avoid_until} if avoid_until > now else self.avoided,
            lost_at=self.lost_at if hop.refused else {**self.lost_at, hop.peer: now},
            liars=self.liars | {hop.peer} if lied else self.liars,
            faults={**self.faults, hop.name: str(error)},
            blamed=self.blamed | {hop.peer} if blamed else self.blamed,
            drops={**self.drops, hop.peer: self.drops.get(hop.peer, 0) + 1} if counts else self.drops,
            search=self.search.after(hop.peer if passes else None),
        ).with_hops({**(self._neighbours_excused(hop_id) if blamed else {}), hop_id: gone})

    def _neighbours_excused(self, hop_id: HopId) -> dict[HopId, HopState]:
        """Hops that were linked to one at fault: that no rows came over those links was not their doing."""
        ends = {end for link in self.links for end in link.ends[:2] if hop_id in link.ends[:2]}
        hops = (self.hop(end) for end in ends)
        return {hop.id: msgspec.structs.replace(hop, retries=0) for hop in hops if hop is not None}

    def probed(self, hop_id: HopId, now: float) -> RouteState:
        """A hop is asked how far it is."""
        hop = self.hop(hop_id)
        return self if hop is None else self.with_hops({hop_id: msgspec.structs.replace(hop, probed_at=now)})

    def promoted(self, span: Span, keep_old: bool) -> RouteState:
        """Those who stand by take a stage over; `keep_old`: the one who held it stands by instead."""
        stages: list[Stage] = []
        event = self.failover
        for stage in self.stages:
            if stage.span != span:
                stages.append(stage)
                continue
            old = (stage.primary,) if keep_old and len(stage.standbys) == 1 else ()
            stages += [Stage(hop.span, hop, old, in_doubt=stage.in_doubt and bool(old)) for hop in stage.standbys]
            if event is not None:
                lost = () if stage.primary.alive else (stage.primary.name,)
                found = tuple(hop.name for hop in stage.standbys)
                event = msgspec.structs.replace(event, lost=(*event.lost, *lost), found=(*event.found, *found))
        return self.replaced(stages=tuple(stages), failover=event)

    def relieved(self, span: Span, now: float) -> RouteState:
        """The hops that stand by for a late one take its stage over, and it stands by for them."""
        step = msgspec.structs.replace(self.step, since=now, relieved=(*self.step.relieved, span))
        return self.promoted(span, keep_old=True).replaced(step=step)

    def suspected(self, peers: Iterable[PeerId]) -> RouteState:
        """What a hop had may be the fault of these before it."""
        suspicions = dict(self.suspicions)
        for peer in peers:
            suspicions[peer] = suspicions.get(peer, 0) + 1
        return self.replaced(suspicions=suspicions)

    def dismissed(self, span: Span, look_again_at: float = math.inf) -> RouteState:
        """Those who stand by for a stage are let go, and none are asked again before that time."""
        return self.with_stage(span, standbys=(), look_again_at=look_again_at)

    def with_stage(self, span: Span, **fields: Any) -> RouteState:
        """With other fields of the stage of that span."""
        return self.replaced(
            stages=tuple(
                msgspec.structs.replace(stage, **fields) if stage.span == span else stage for stage in self.stages
            )
        )

    def opening(self, span: Span, follow: bool, now: float) -> RouteState:
        """Servers are being asked; the opening's number is the old `openings_made`."""
        one = Opening(self.openings_made, span, now, follow)
        inside = (stage for stage in self.stages if self._inside(stage, span))
        replaces = not follow and any(stage.primary.joined for stage in inside)  # a refusal replaces nothing
        return self.replaced(
            openings=(*self.openings, one),
            openings_made=self.openings_made + 1,
            replacements=self.replacements + replaces,
        )

    def not_opened(self, opening_id: int, error: NoRoute, now: float) -> RouteState:
        """Too few servers are known for an opening."""
        (one,) = (one for one in self.openings if one.id == opening_id)
        state = self._without(one)
        if one.follow:
            stage = next((stage for stage in state.stages if stage.span == one.span), None)
            # A server that was at fault is a successor in need, and no spare: it would take over unseen.
            needed = stage is not None and (stage.in_doubt or stage.primary.leaving)
            lenience = state.more_lenient(stage.lenience, now) if stage is not None and needed else NO_LENIENCE
            return state.with_stage(one.span, lenience=lenience, unfound=True)
        return state.replaced(search=msgspec.structs.replace(self.search, missing=error))

    def _rank(self, peer: str) -> int:
        """How often a server was dropped, or refused in this search: those of the lowest rank are asked first."""
        return self.drops.get(peer, 0) + self.search.refused.get(peer, 0)

    def avoided_now(self, now: float, lenience: int = NO_LENIENCE) -> frozenset[str]:
        """Servers not to choose: those of a higher rank than `lenience`, as long as they are avoided."""
        return frozenset(peer for peer, until in self.avoided.items() if until > now and self._rank(peer) > lenience)

    def more_lenient(self, lenience: int, now: float) -> int:
        """So that those of the lowest rank are asked, of all that are avoided: perhaps they were not so bad."""
        return min((self._rank(peer) for peer in self.avoided_now(now, lenience)), default=lenience)

    def was_opened(self, opening_id: int, hops: Sequence[HopState]) -> RouteState:
        """Servers have answered: `hops` cover the opening's span; those that refused are lost."""
        (one,) = (one for one in self.openings if one.id == opening_id)
        state = self._without(one)
        return state._followed(one, tuple(hops)) if one.follow else state._filled(one, tuple(hops))

    def _without(self, opening: Opening) -> RouteState:
        return self.replaced(openings=tuple(one for one in self.openings if one.id != opening.id))

    def _followed(self, opening: Opening, hops: tuple[HopState, ...]) -> RouteState:
        stage = next((stage for stage in self.stages if stage.span == opening.span), None)
        fits = stage is not None and not stage.standbys and stage.primary.alive
        if fits and all(hop.alive for hop in hops):
            return self.with_stage(opening.span, standbys=hops, lenience=NO_LENIENCE, unfound=False)
        return self.replaced(strays=(*self.strays, *(hop for hop in hops if not hop.alive)))

    def _filled(self, opening: Opening, hops: tuple[HopState, ...]) -> RouteState:
        old = [stage for stage in self.stages if self._inside(stage, opening.span)]
        before = [stage for stage in self.stages if stage.span.stop <= opening.span.start]
        after = [stage for stage in self.stages if stage.span.start >= opening.span.stop]
        refusal = next((hop.lost for hop in hops if hop.lost is not None), None)
        event = self.failover
        if event is not None:
            found = tuple(hop.name for hop in hops if hop.alive)
            event = msgspec.structs.replace(
                event,
                lost=(*event.lost, *(stage.primary.name for stage in old if stage.primary.joined)),
                found=(*event.found, *found),
                replayed_rows=event.replayed_rows + self.end * len(found),
            )
        search = msgspec.structs.replace(self.search, refusal=refusal or self.search.refusal)
        stages = (*before, *(Stage(hop.span, hop) for hop in hops), *after)
        return self.replaced(stages=stages, failover=event, search=search)

    @staticmethod
    def _inside(stage: Stage, span: Span) -> bool:
        return span.start <= stage.span.start and stage.span.stop <= span.stop

    def retry(self) -> RouteState:
        """Begin anew after giving up."""
        return self.replaced(given_up=None, search=Search(), replacements=0, blamed=frozenset())

    @property
    def in_trouble(self) -> bool:
        """Whether it means something that rows come back."""
        trouble = self.replacements or self.blamed or self.search.deadline is not None
        return bool(trouble or (self.drops and any(hop.peer in self.drops for hop in self.primaries)))

    def progressed(self, now: float, proven_s: float) -> RouteState:
        """Rows came back to the client. What a server did is forgotten when they have gone through it for `proven_s`."""
        hops = {
            hop.id: msgspec.structs.replace(hop, delivers_since=min(hop.delivers_since, now)) for hop in self.primaries
        }
        proven = {hop.peer for hop in hops.values() if now - hop.delivers_since >= proven_s}
        return self.with_hops(hops).replaced(
            replacements=0,
            blamed=frozenset(),
            search=msgspec.structs.replace(self.search, deadline=None),
            drops={peer: times for peer, times in self.drops.items() if peer not in proven},
        )


def _without_standby(stage: Stage, hop: HopState) -> Stage:
    """A stage without one that stands by. All go that stand by with it; others are asked at once where there is doubt."""
    stage = msgspec.structs.replace(stage, lenience=NO_LENIENCE)
    if hop not in stage.standbys:
        return stage
    return msgspec.structs.replace(stage, standbys=(), look_again_at=0.0 if stage.in_doubt else stage.look_again_at)
