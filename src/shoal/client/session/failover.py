"""Every rule about hops and links that fail, as a pure function of what is known (docs/concepts/healing.md).

`decide` asks the rules in order; the first that has something to do is answered. `applied` is what an action does to the state:
no rule gives the same answer to its own outcome, so deciding and acting in turn comes to rest.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import msgspec

from shoal.client.session.route_state import (
    DECODE_ROWS,
    HopId,
    HopState,
    LinkEnds,
    LinkStatus,
    RouteState,
    Search,
    Stage,
    ends_of,
)
from shoal.errors import (
    CapacityError,
    ChannelClosed,
    DialError,
    GrantExceeded,
    NetworkError,
    NoRoute,
    NotHeld,
    ProtocolError,
    ServerFull,
    SessionFenced,
    ShoalError,
    WrongRows,
)
from shoal.types import PeerId, Span

HELD_BACK_ROWS = 1024
"""Half of what a hop keeps waiting before it takes no more."""

MAX_DOUBLINGS = 16
"""Beyond every bound of what is doubled."""

MAX_FAULTS = 8
"""Servers whose faults an error names."""


class FailoverPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """What a session asks, and the figures of the rules: seconds where nothing else is said."""

    patience_s: float = 60.0
    """Blocks without a server are waited for so long, in a session that was whole once."""
    opening_patience_s: float = 10.0
    """The same at its first opening, ..."""
    told_patience_s: float = 60.0
    """... or until a server has room again, as it says, if that is not longer than this."""
    redundancy: int = 1
    """From 2 on, servers stand by for every stage."""
    hung_s: float = 3.0
    """A hop that beats, has rows to compute and makes no step for so long hangs ..."""
    hung_steps: float = 8.0
    """... if that is more than so many of its usual steps."""
    stalled_s: float = 3.0
    """Rows that one hop has and the next does not get for so long: the two cannot reach each other."""
    frame_s: float = 0.0
    """The same for a link that is just fast enough for one frame in that time, ..."""
    frame_rows: int = 1
    """... which has so many rows."""
    max_retries: int = 2
    """A link made anew so often without a row: its receiver is at fault, and twice as often, its sender."""
    again_s: float = 1.0
    """A link made anew, at which the client sees who keeps rows back: that hop is at fault after so long."""
    busy_s: float = 3.5
    """A hop has rows and computes no frame of them for so long, whatever steps it counts: others are asked to follow it ..."""
    busy_steps: float = 4.0
    """... if that is more than so many usual decoding steps, and take its place when they are ahead."""
    busy_most_s: float = 60.0
    """Where there are no others it is at fault after so long."""
    most_slack: float = 8.0
    """A server that was dropped has twice the time of `hung_s`, `stalled_s`, `busy_s` and `busy_most_s` when it is asked again,
    then four times: it may be slow. So many times at most."""
    lied_s: float = 600.0
    """A server that was caught is chosen by no session for so long while others cover its blocks."""
    down_s: float = 1.0
    """The sending hop has said for so long that it cannot connect."""
    direct_again_s: float = 15.0
    """After so long a link that the client carries is tried directly again, between two steps."""
    hedge_s: float = 0.25
    """With hops standing by: a decoding step so late is looked into ..."""
    hedge_steps: float = 4.0
    """... if that is more than so many usual ones, ..."""
    probe_s: float = 0.1
    """... and its late hop relieved so long after a last question."""
    caught_up_rows: int = 8
    """A follower so few rows behind takes over from a hop that is leaving."""
    avoid_s: float = 10.0
    """A server where a hop was lost is not chosen for so long while others cover its blocks, ..."""
    judged_s: float = 320.0
    """... for so long one that made the session wait, ..."""
    avoid_most_s: float = 640.0
    """... each twice as long each time and no longer than this, ..."""
    proven_s: float = 60.0
    """... until rows have gone through a hop there for so long."""
    retry_s: float = 0.5
    """Between two looks for servers while some blocks have none."""
    leaving_retry_s: float = 0.5
    """Between two looks for servers to follow a hop that is leaving."""
    standby_retry_s: float = 5.0
    """The same for one that is not."""
    max_replacements: int = 64
    """Stages replaced without a row in between: more is not bad luck but a mistake."""


class OpenSpan(msgspec.Struct, frozen=True):
    """Have servers open the session over `span`, none of those in `without`; `follow`: to stand by there.

    `in_doubt`: only until it is clear that the hop there computes, and stays.
    """

    span: Span
    follow: bool = False
    without: frozenset[str] = frozenset()
    broken: frozenset[tuple[str, str]] = frozenset()
    numerics: str | None = None
    look_again_at: float = 0.0
    in_doubt: bool = False
    bits: float | None = None


class Connect(msgspec.Struct, frozen=True):
    """Make a link."""

    ends: LinkEnds
    through_client: bool = False


class Disconnect(msgspec.Struct, frozen=True):
    """End a link. `reaches`: what is now held to be so of its two hops, if anything; `stalled`: no rows came over it."""

    ends: LinkEnds
    reaches: bool | None = None
    stalled: bool = False


class Promote(msgspec.Struct, frozen=True):
    """Those who stand by take the stage of `span` over; `keep_old`: its hop stands by instead."""

    span: Span
    keep_old: bool = False


class Dismiss(msgspec.Struct, frozen=True):
    """Let those go who stand by for the stage of `span`, and ask no others before `look_again_at`."""

    span: Span
    look_again_at: float = math.inf


class Drop(msgspec.Struct, frozen=True):
    """A hop is of no use any more. Its server is not chosen for `avoid_for`; `unreachable`: for no session.

    `lied`: it was caught, and this session does not take it again. `suspects`: servers before it which may be at fault.
    """

    hop: HopId
    error: ShoalError
    avoid_for: float = 0.0
    unreachable: bool = False
    lied: bool = False
    suspects: tuple[PeerId, ...] = ()


class Probe(msgspec.Struct, frozen=True):
    """Ask a hop how far it is."""

    hop: HopId


class Refresh(msgspec.Struct, frozen=True):
    """Ask the swarm for news."""


class Wait(msgspec.Struct, frozen=True):
    """Look again at `until`: some blocks are `missing`. The search ends at `deadline`."""

    until: float
    missing: str
    deadline: float


class GiveUp(msgspec.Struct, frozen=True):
    """End the repair with an error, until the next step."""

    error: ShoalError


Action = OpenSpan | Connect | Disconnect | Promote | Dismiss | Drop | Probe | Refresh | Wait | GiveUp


def decide(state: RouteState, now: float, policy: FailoverPolicy) -> list[Action]:
    """What to do now; nothing when the state is as it should be, or waits for what is under way."""
    return _first((_fenced, _lost, _stand_in, _judge, _repair), state, now, policy)


def applied(state: RouteState, action: Action, now: float) -> RouteState:
    """The state once an action is under way."""
    match action:
        case OpenSpan(span=span, follow=follow, look_again_at=look_again_at, in_doubt=in_doubt):
            if follow:
                state = state.with_stage(span, look_again_at=look_again_at, in_doubt=in_doubt)
            return state.opening(span, follow, now)
        case Connect(ends=ends, through_client=through_client):
            link = LinkStatus(ends, since=now, made=False, through_client=through_client)
            return state.replaced(links=(*state.links, link))
        case Disconnect():
            return _disconnected(state, action, now)
        case Promote(span=span, keep_old=keep_old):
            return state.relieved(span, now) if keep_old else state.promoted(span, keep_old)
        case Dismiss(span=span, look_again_at=look_again_at):
            return state.dismissed(span, look_again_at)
        case Drop(hop=hop_id, error=error, avoid_for=avoid_for, lied=lied, suspects=suspects):
            return state.dropped(hop_id, error, now + avoid_for, now, lied).suspected(suspects)
        case Probe(hop=hop_id):
            return state.probed(hop_id, now)
        case Refresh():
            search = msgspec.structs.replace(state.search, asked=True, asking=True, retry_at=None)
            return state.replaced(search=search, refreshed_at=now)
        case Wait(until=until, missing=missing, deadline=deadline):
            search = msgspec.structs.replace(state.search, retry_at=until, deadline=deadline)
            search = msgspec.structs.replace(search, lenience=state.more_lenient(search.lenience, now))
            event = state.failover and msgspec.structs.replace(state.failover, missing=missing)
            return state.replaced(search=search, failover=event)
        case GiveUp(error=error):
            return state.replaced(given_up=error, failover=None, search=Search())


def _disconnected(state: RouteState, action: Disconnect, now: float) -> RouteState:
    state = state.replaced(links=tuple(link for link in state.links if link.ends != action.ends))
    if action.reaches is None:
        return state
    ends = [hop for hop in map(state.hop, action.ends[:2]) if hop is not None]
    if action.stalled and ends:
        computed = ends[-1].progress.computed
        state = state.with_hops({hop.id: hop.retried(computed) for hop in ends})
        state = state.replaced(remade=state.remade | {action.ends})
    if len(ends) == 2:
        pair = frozenset({(ends[0].peer, ends[1].peer)})
        known = state.unreachable
        state = state.replaced(unreachable=known - pair if action.reaches else known | pair)
    return state if action.reaches else state.explained(now)


# Hops that are lost


def _fenced(state: RouteState, now: float, policy: FailoverPolicy) -> list[Action]:
    """A later process has taken the session up: this one must not go on beside it. Of a private session that is a lie."""
    if state.private:
        return []
    fenced = next((hop.lost for hop in state.primaries if isinstance(hop.lost, SessionFenced)), None)
    return [GiveUp(fenced)] if fenced is not None and state.given_up is None else []


def _lost(state: RouteState, now: float, policy: FailoverPolicy) -> list[Action]:
    """A lost hop is dropped once. One that was caught may have had from another what it was caught with."""
    hops = [*state.hops, *state.strays]
    lost = [(hop, hop.lost) for hop in hops if hop.lost is not None and not hop.dropped]
    for hop, error in lost:
        if isinstance(error, WrongRows) and error.relayed and hop in state.primaries[1:]:
            return _caught(state, hop, error, policy)
    believed = (SessionFenced,) if not state.private else ()
    return [_drop(state, hop, error, now, policy) for hop, error in lost if not isinstance(error, believed)]


def _caught(state: RouteState, hop: HopState, error: WrongRows, policy: FailoverPolicy) -> list[Action]:
    """The hop that was caught is at fault the first time; if its successor is caught too, one before them is.

    What the others have had from a hop at fault is worth nothing: they begin anew.
    """
    route = state.primaries
    index = route.index(hop)
    before = route[:index]
    suspect = max(reversed(before), key=lambda one: state.suspicions.get(one.peer, 0))
    blamed = suspect if state.suspicions.get(suspect.peer, 0) else hop
    first = 0 if error.ahead else route.index(blamed)
    actions: list[Action] = []
    for one in route[first : index + 1]:
        if one is blamed and one is hop:
            suspects = tuple(other.peer for other in before)
            actions.append(Drop(one.id, error, policy.lied_s, suspects=suspects))
        elif one is blamed:
            actions.append(Drop(one.id, WrongRows(f"{error}, at the hops behind it"), policy.lied_s))
        elif not one.dropped:
            actions.append(Drop(one.id, one.lost or ShoalError(f"{blamed.name} was caught on the same route"), 0.0))
    return actions


def _drop(state: RouteState, hop: HopState, error: ShoalError, now: float, policy: FailoverPolicy) -> Drop:
    """A server out of reach is avoided, one that refuses too; one where only this session failed is at the second time.

    That is forgotten when rows have gone through it since: who loses the session again and again would hold it up for ever.
    """
    if isinstance(error, WrongRows | SessionFenced):
        first = any(stage.primary.id == hop.id for stage in state.stages[:1])
        return Drop(hop.id, error, policy.lied_s, lied=first or not getattr(error, "relayed", False))
    unreachable = isinstance(error, NetworkError)
    if hop.refused and isinstance(error, NotHeld):
        return Drop(
            hop.id, error, 0.0, unreachable=True
        )  # it holds other blocks than its record says: its next one tells
    delivered = now - hop.delivers_since >= policy.avoid_s
    again = hop.peer in state.lost_at and (now - state.lost_at[hop.peer] < policy.avoid_s or not delivered)
    avoided = hop.refused or unreachable or again or isinstance(error, ProtocolError)
    return Drop(hop.id, error, _avoid_s(state, hop, error, policy) if avoided else 0.0, unreachable)


def _judged(state: RouteState, hop: HopState, error: ShoalError, now: float, policy: FailoverPolicy) -> list[Action]:
    """A hop at fault is dropped, and with it all that its server has in this session: they would be found one by one."""
    others = (one for one in state.hops if one.peer == hop.peer and one.id != hop.id and not one.dropped)
    return [_drop(state, one, error, now, policy) for one in (hop, *others)]


def _avoid_s(state: RouteState, hop: HopState, error: ShoalError, policy: FailoverPolicy) -> float:
    """How long a server is avoided now: longer than all others may take that make the session wait, and longer each time."""
    waited = isinstance(error, NetworkError) and not isinstance(error, ChannelClosed | DialError)
    return min((policy.judged_s if waited else policy.avoid_s) * _doubled(state, hop), policy.avoid_most_s)


def _slack(state: RouteState, hops: Sequence[HopState], policy: FailoverPolicy) -> float:
    """How many times the usual patience hops are given: one that is only slow gets through in the end."""
    return min(policy.most_slack, max((_doubled(state, hop) for hop in hops), default=1.0))


def _doubled(state: RouteState, hop: HopState) -> float:
    """2 for each time that a hop's server was dropped."""
    return 2.0 ** min(MAX_DOUBLINGS, state.drops.get(hop.peer, 0))


def _stand_in(state: RouteState, now: float, policy: FailoverPolicy) -> list[Action]:
    """Those who stand by for a lost hop take its place."""
    stages = [stage for stage in state.stages if not stage.primary.alive and stage.ready]
    return [Promote(stage.span) for stage in stages if not state.replacing(stage)]


# Hops and links that are judged


def _gone(state: RouteState, now: float, policy: FailoverPolicy) -> list[Action]:
    """A hop whose journal no longer has what the next one needs starts afresh; a follower that needs it is let go."""
    actions: list[Action] = []
    for link in state.links:
        sender = state.hop(link.ends.sender)
        if not link.made or link.said != "gone" or sender is None or not sender.alive:
            continue
        if link.ends.follows:
            actions += [Dismiss(stage.span) for stage in state.stages if _first_standby(stage) == link.ends.receiver]
        else:
            error = ShoalError(f"{sender.name} no longer has rows {link.said_position} and on")
            actions.append(_drop(state, sender, error, now, policy))
    return actions


def _first_standby(stage: Stage) -> HopId | None:
    return stage.standbys[0].id if stage.standbys else None


def _down(state: RouteState, now: float, policy: FailoverPolicy) -> list[Action]:
    """A hop that says that it cannot connect to the next one is believed."""
    return [
        Disconnect(link.ends, reaches=False)
        for link in state.links
        if link.made and not link.through_client and link.said == "down" and now - link.said_at > policy.down_s
        if all(hop is not None and hop.alive for hop in map(state.hop, link.ends[:2]))
    ]


def _leaving(state: RouteState, now: float, policy: FailoverPolicy) -> list[Action]:
    """A hop that is leaving goes when its follower has caught up; until then the follower is asked how far it is."""
    probes: list[Action] = []
    for stage in state.stages:
        if not stage.primary.leaving or not stage.primary.alive or not stage.ready:
            continue
        follower = stage.standbys[-1]
        progress = follower.progress
        if progress.epoch >= state.epoch and progress.computed + policy.caught_up_rows >= state.end:
            return [Promote(stage.span)]
        if now - max(follower.heard_at, follower.probed_at) > policy.probe_s:
            probes.append(Probe(follower.id))
    return probes


def _late(state: RouteState, now: float, policy: FailoverPolicy) -> list[Action]:
    """A late decoding step at a hop that others stand by for goes on there, after a last question to all; once a stage."""
    step = state.step
    if not step.active or step.rows > DECODE_ROWS or not any(stage.ready for stage in state.stages):
        return []
    if now - step.since < max(policy.hedge_steps * step.expected_s, policy.hedge_s):
        return []
    alive = [hop for hop in state.hops if hop.alive]
    unasked: list[Action] = [Probe(hop.id) for hop in alive if hop.probed_at < step.since]
    if unasked or now - max(hop.probed_at for hop in alive) < policy.probe_s:
        return unasked
    late = next((stage for stage in state.stages if _late_at(state, stage)), None)
    if late is None or not late.ready or not late.primary.alive or late.span in step.relieved:
        return []
    ahead = late.standbys[-1].progress.computed >= late.primary.progress.computed
    return [Promote(late.span, keep_old=True)] if ahead else []


def _late_at(state: RouteState, stage: Stage) -> bool:
    return state.behind(stage.primary) or stage.primary.heard_at < state.step.since


def _stalled(state: RouteState, now: float, policy: FailoverPolicy) -> list[Action]:
    """The first hop that is behind either hangs, or does not get what the one before it has."""
    if not state.step.active:
        return []
    before: HopState | None = None
    for hop in state.primaries:
        if state.behind(hop):
            progress = hop.progress
            quiet_s = now - max(state.step.since, hop.changed_at, before.changed_at if before else 0.0)
            if _held_back(state, hop):
                before = hop
                continue
            if progress.position <= progress.computed:
                return _cut_off(state, before, hop, quiet_s, now, policy)
            usual_s = min(policy.hung_steps * progress.step_s, policy.busy_most_s)
            patience_s = max(policy.hung_s * _slack(state, [hop], policy), usual_s)
            if hop.alive and min(quiet_s, now - hop.stepped_at) > patience_s:
                error = NetworkError(f"{hop.name} beats but does not compute")
                return _judged(state, hop, error, now, policy)
            most_s = policy.busy_most_s * _slack(state, [hop], policy)
            if hop.alive and now - max(state.step.since, hop.worked_at) > most_s:
                return _judged(state, hop, _idle(hop, now), now, policy)
            return []
        before = hop
    quiet_s = now - max(state.step.since, before.changed_at) if before is not None else 0.0
    return _cut_off(state, before, None, quiet_s, now, policy)


def _idle(hop: HopState, now: float) -> NetworkError:
    return NetworkError(f"{hop.name} has had rows for {now - hop.worked_at:.0f} s and has computed few or none of them")


def _busy(state: RouteState, hop: HopState, now: float, policy: FailoverPolicy) -> bool:
    """Whether a hop has rows of this session and has computed none for long, whatever it does beside."""
    progress = hop.progress
    if not state.step.active or not hop.alive or not state.behind(hop) or progress.position <= progress.computed:
        return False
    usual_s = max(policy.busy_s, policy.busy_steps * state.step.expected_s)
    return now - hop.worked_at > usual_s * _slack(state, [hop], policy)


def _useless(state: RouteState, now: float, policy: FailoverPolicy) -> list[Action]:
    """Who follows a hop in doubt and has rows is in doubt as well: one that computes none makes room for another."""
    for stage in state.stages:
        if not stage.ready or not _busy(state, stage.primary, now, policy):
            continue
        for hop in stage.standbys:
            if _busy(state, hop, now, policy):
                error = _idle(hop, now)
                return [Drop(hop.id, error, _avoid_s(state, hop, error, policy))]
    return []


def _overtaken(state: RouteState, now: float, policy: FailoverPolicy) -> list[Action]:
    """A hop that computes nothing while its follower does is no busy one."""
    for stage in state.stages:
        hop = stage.primary
        if not stage.ready or not _busy(state, hop, now, policy):
            continue
        follower = stage.standbys[-1].progress
        if (follower.epoch, follower.computed) > (hop.progress.epoch, hop.progress.computed):
            return _judged(state, hop, _idle(hop, now), now, policy)
    return []


def _lagging(state: RouteState, now: float, policy: FailoverPolicy) -> list[Action]:
    """Rows that a hop says it has, and that the next one does not get, whatever else the two of them say meanwhile.

    The same for one that follows: while it gets none it helps nobody.
    """
    if not state.step.active:
        return []
    for ends in state.wanted_links():
        before, hop, link = state.hop(ends.sender), state.hop(ends.receiver), _link(state, ends)
        has_work = hop is not None and hop.progress.position > hop.progress.computed
        if link is not None and link.lags_at is not None and not has_work:
            actions = _cut_off(state, before, hop, now - max(state.step.since, link.lags_since), now, policy, link)
            if actions:
                return actions
    return []


def _link(state: RouteState, ends: LinkEnds) -> LinkStatus | None:
    return next((link for link in state.links if link.ends == ends and link.made), None)


def _cut_off(
    state: RouteState,
    sender: HopState | None,
    receiver: HopState | None,
    quiet_s: float,
    now: float,
    policy: FailoverPolicy,
    link: LinkStatus | None = None,
) -> list[Action]:
    """A link that brings nothing is made anew, through the client; a hop of which that is true again and again is at fault.

    At its own link, and at one that it carries, the client need not make it again: it sees who is at fault.
    """
    link = link or _link(state, ends_of(sender, receiver))
    hops = [hop for hop in (sender, receiver) if hop is not None]
    if link is None or not all(hop.alive for hop in hops) or _held_back(state, receiver):
        return []
    frame_s, slack = _frame_s(state, sender, receiver, policy), _slack(state, hops, policy)
    suspect = state.hop(link.suspect)
    if suspect is not None and link.ends in state.remade:
        seen_s = now - max(state.step.since, link.suspect_since, link.lags_since)
        if seen_s > max(policy.again_s, frame_s) * slack:
            return _judged(state, suspect, _silent(suspect), now, policy)
        return []
    if quiet_s <= max(policy.stalled_s, frame_s) * slack:
        return []
    blamed = receiver if receiver is not None and receiver.retries >= policy.max_retries else None
    if sender is not None and sender.retries >= policy.max_retries * (1 if receiver is None else 2):
        blamed = sender
    if blamed is not None:
        return _judged(state, blamed, _silent(blamed), now, policy)
    return [Disconnect(link.ends, reaches=False, stalled=True)]


def _held_back(state: RouteState, hop: HopState | None) -> bool:
    """Whether a hop takes no more rows since the one after it takes none: its own are waiting."""
    if hop is None or hop not in state.primaries:
        return False
    after = next((two for one, two in itertools.pairwise(state.primaries) if one is hop), None)
    has = state.received if after is None else after.progress.position
    return hop.progress.computed - has > HELD_BACK_ROWS


def _silent(hop: HopState) -> NetworkError:
    return NetworkError(f"{hop.name} answers, but no rows come over any link of it")


def _frame_s(state: RouteState, sender: HopState | None, receiver: HopState | None, policy: FailoverPolicy) -> float:
    """How long a slow link may take for the frame that is due: few rows are a short one."""
    there = state.end if sender is None else sender.progress.computed
    has = state.received if receiver is None else receiver.progress.position
    return policy.frame_s * min(1.0, max(1, there - has) / policy.frame_rows)


def _direct_again(state: RouteState, now: float, policy: FailoverPolicy) -> list[Action]:
    """A link that the client carries is tried directly again between two steps."""
    if state.step.active:
        return []
    old = (link for link in state.links if link.made and link.through_client)
    return [Disconnect(link.ends, reaches=True) for link in old if now - link.since > policy.direct_again_s]


# Servers for blocks that have none


def _too_many(state: RouteState, now: float, policy: FailoverPolicy) -> list[Action]:
    """Stages that are replaced one after another without a row in between: there is a mistake."""
    if state.replacements <= policy.max_replacements or state.whole:
        return []
    return [GiveUp(NetworkError(f"{policy.max_replacements} hops failed one after another{_story(state)}"))]


def _replace(state: RouteState, now: float, policy: FailoverPolicy) -> list[Action]:
    """Servers for each run of stages that has none; where none are known, news of the swarm first, and patience then."""
    runs, search = state.lost_runs(), state.search
    if not runs or search.asking:
        return []
    if search.missing is None:
        leaving = frozenset(hop.peer for hop in state.hops if hop.leaving)
        return [_open(state, run, leaving, now, policy, search.lenience) for run in runs]
    if not search.asked:
        return [Refresh()]
    if search.retry_at is not None:
        return [Refresh()] if now >= search.retry_at else []
    return [_wait(state, search.missing, now, policy)]


def _open(
    state: RouteState, span: Span, taken: frozenset[str], now: float, policy: FailoverPolicy, lenience: int
) -> OpenSpan:
    avoided = state.avoided_now(now, lenience)
    over = state.search.deadline is not None and now >= state.search.deadline
    hopeless = state.blamed if over else frozenset()
    return OpenSpan(
        span,
        False,
        taken | avoided | state.liars | hopeless,
        state.unreachable,
        state.arithmetic.key(span),
        bits=state.arithmetic.bits_of(span),
    )


def _wait(state: RouteState, missing: NoRoute, now: float, policy: FailoverPolicy) -> Wait | GiveUp:
    """What may pass is waited out: servers that are full, leaving or out of reach. Any other refusal is an answer."""
    refusal, search = state.search.refusal, state.search
    patience_s = policy.patience_s if state.failovers else _opening_patience_s(refusal, policy)
    deadline = now + patience_s if search.deadline is None else search.deadline
    no_answer = refusal is None or isinstance(refusal, NotHeld)  # who holds other blocks by now is no answer
    may_pass = isinstance(refusal, NetworkError | CapacityError) and not isinstance(refusal, GrantExceeded)
    if now < deadline and (no_answer or may_pass):
        return Wait(min(now + policy.retry_s, deadline), str(missing), deadline)
    absent = no_answer or (state.opened and isinstance(refusal, NetworkError))
    return GiveUp(_told(state, missing) if absent or refusal is None else refusal)


def _opening_patience_s(refusal: ShoalError | None, policy: FailoverPolicy) -> float:
    told_s = refusal.retry_after if isinstance(refusal, ServerFull) else 0.0
    return max(policy.opening_patience_s, min(told_s, policy.told_patience_s))


def _told(state: RouteState, missing: NoRoute) -> NoRoute:
    """What is missing, and what those servers did that were tried."""
    story = _story(state)
    return NoRoute(f"{missing}{story}", missing.missing) if story else missing


def _story(state: RouteState) -> str:
    faults = list(state.faults.items())[-MAX_FAULTS:]
    return f" ({'; '.join(f'{name}: {what}' for name, what in faults)})" if faults else ""


# Links and hops that stand by


def _join(state: RouteState, now: float, policy: FailoverPolicy) -> list[Action]:
    """Links that should be are made, others are cut. Two hops that do not reach each other are joined by the client."""
    wanted, there = state.wanted_links(), {link.ends for link in state.links}
    actions: list[Action] = [Disconnect(link.ends) for link in state.links if link.ends not in wanted]
    return actions + [Connect(ends, _is_broken(state, ends)) for ends in wanted if ends not in there]


def _is_broken(state: RouteState, ends: LinkEnds) -> bool:
    sender, receiver = state.hop(ends.sender), state.hop(ends.receiver)
    return sender is not None and receiver is not None and (sender.peer, receiver.peer) in state.unreachable


def _standbys(state: RouteState, now: float, policy: FailoverPolicy) -> list[Action]:
    """Servers stand by where that was asked for, where a hop is leaving, and where one may only seem to be busy."""
    if state.failover is not None or not state.opened:
        return []
    stages = [stage for stage in state.stages if _wants_standby(state, stage, now, policy)]
    if not stages:
        return []
    followed = {one.span for one in state.openings if one.follow}
    due = [
        stage for stage in stages if not stage.standbys and stage.span not in followed and now >= stage.look_again_at
    ]
    old = now - state.refreshed_at >= policy.standby_retry_s
    news: list[Action] = [Refresh()] if old and any(stage.unfound for stage in due) else []
    return [*news, *(_follow(state, stage, now, policy) for stage in due)]


def _follow(state: RouteState, stage: Stage, now: float, policy: FailoverPolicy) -> OpenSpan:
    """Others than the servers of the route, or, of a hop in doubt, than its own: they are to compute, not to be spared."""
    in_doubt = policy.redundancy == 1 or (not stage.primary.leaving and _busy(state, stage.primary, now, policy))
    seems_busy = in_doubt and not stage.primary.leaving
    taken = [stage.primary, *(hop for hop in state.hops if hop.leaving)] if seems_busy else state.hops
    return msgspec.structs.replace(
        _open(state, stage.span, frozenset(hop.peer for hop in taken), now, policy, stage.lenience),
        follow=True,
        look_again_at=now + _interval_s(stage, policy),
        in_doubt=in_doubt,
    )


def _wants_standby(state: RouteState, stage: Stage, now: float, policy: FailoverPolicy) -> bool:
    hop = stage.primary
    return hop.alive and (policy.redundancy > 1 or hop.leaving or _busy(state, hop, now, policy))


def _not_needed(state: RouteState, now: float, policy: FailoverPolicy) -> list[Action]:
    """Who follows a hop that was in doubt goes when that one has computed what it had, and stays."""
    return [
        Dismiss(stage.span, now + policy.standby_retry_s)
        for stage in state.stages
        if stage.in_doubt and stage.standbys and stage.primary.alive and not state.behind(stage.primary)
        if not stage.primary.leaving
    ]


def _interval_s(stage: Stage, policy: FailoverPolicy) -> float:
    return policy.leaving_retry_s if stage.primary.leaving else policy.standby_retry_s


Rule = Callable[[RouteState, float, FailoverPolicy], list[Action]]


def _judge(state: RouteState, now: float, policy: FailoverPolicy) -> list[Action]:
    """Hops are judged once the route has been whole."""
    judges: tuple[Rule, ...] = (_gone, _down, _leaving, _overtaken, _useless, _late, _stalled, _lagging, _direct_again)
    return _first(judges, state, now, policy) if state.opened else []


def _repair(state: RouteState, now: float, policy: FailoverPolicy) -> list[Action]:
    """The route is made whole, unless that was given up."""
    repairs: tuple[Rule, ...] = (_too_many, _replace, _not_needed, _join, _standbys)
    return _first(repairs, state, now, policy) if state.given_up is None else []


def _first(rules: tuple[Rule, ...], state: RouteState, now: float, policy: FailoverPolicy) -> list[Action]:
    return next((actions for rule in rules if (actions := rule(state, now, policy))), [])
