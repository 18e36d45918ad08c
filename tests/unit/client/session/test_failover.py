"""Every rule of docs/concepts/healing.md, as a state, a time and what is to be done then."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from shoal.client.session.failover import (
    Action,
    Connect,
    Disconnect,
    Dismiss,
    Drop,
    FailoverPolicy,
    GiveUp,
    OpenSpan,
    Probe,
    Promote,
    Refresh,
    Wait,
    applied,
    decide,
)
from shoal.client.session.route_state import Arithmetic, LinkEnds, RouteState, Search, Stage
from shoal.errors import (
    DialError,
    GrantExceeded,
    NetworkError,
    NoRoute,
    NotHeld,
    ProtocolError,
    ServerFull,
    SessionFenced,
    SessionLost,
    ShoalError,
    WrongRows,
)
from shoal.protocol.messages import Pong
from shoal.types import Span
from tests.unit.client.session.routes import (
    ALL,
    FIRST,
    ONE,
    SECOND,
    STANDBY,
    TWO,
    changed,
    followed,
    hop_at,
    joined,
    peer_of,
    reported,
    route,
    said,
    stepping,
)

PAGE = Path(__file__).parents[4] / "docs" / "concepts" / "healing.md"
POLICY = FailoverPolicy()
REDUNDANT = FailoverPolicy(redundancy=2)
BETWEEN, INTO, OUT = LinkEnds(ONE, TWO), LinkEnds(None, ONE), LinkEnds(TWO, None)
SILENT_ONE, SILENT_TWO = (
    NetworkError(f"hop {number} answers, but no rows come over any link of it") for number in (1, 2)
)
GONE, LOST, FULL, NO_SERVER = (
    DialError("gone"),
    SessionLost("expired"),
    ServerFull("full"),
    NoRoute("no server for 0:6"),
)
PEERS = frozenset(map(peer_of, (ONE, TWO, STANDBY)))


def stayed(policy: FailoverPolicy = POLICY) -> RouteState:
    """The first hop was leaving, so that another one follows it, and has called that off."""
    state = changed(route(), ONE, leaving=True)
    follow = next(action for action in decide(state, 0.0, policy) if isinstance(action, OpenSpan))
    state = applied(state, follow, 0.0)
    state = joined(state.was_opened(state.openings[-1].id, [hop_at(STANDBY, FIRST)]))
    return changed(state, ONE, leaving=False)


def lost(error: ShoalError, hop: int = ONE, **fields: Any) -> RouteState:
    """A hop of a whole route is lost."""
    return changed(route(), hop, lost=error, **fields)


def dropped(error: ShoalError = GONE, **fields: Any) -> RouteState:
    """A lost hop that has been dropped, and whose links are cut."""
    state = lost(error, dropped=True).replaced(**fields)
    return state.replaced(links=tuple(link for link in state.links if link.ends in state.wanted_links()))


def searching(**fields: Any) -> RouteState:
    """No server was found for the first hop's blocks."""
    return dropped(search=Search(missing=NO_SERVER, **fields))


def asked(state: RouteState) -> RouteState:
    """Every hop was asked how far it is at 0.3 s."""
    return state.with_hops({hop.id: msgspec.structs.replace(hop, probed_at=0.3) for hop in state.hops})


def late(follower_computed: int = 1, hop_computed: int = 0) -> RouteState:
    """A decoding step is under way; the first hop has its row, has not computed it, and is followed."""
    state = reported(stepping(followed(route())), ONE, 1, hop_computed)
    return reported(state, STANDBY, 1, follower_computed)


def leaving(follower_computed: int) -> RouteState:
    """The first hop is leaving, twenty rows have gone through, and its follower has computed so many."""
    return reported(changed(followed(route(end=20)), ONE, leaving=True), STANDBY, 20, follower_computed)


def stuck_at_first_link(retries: int) -> RouteState:
    """A row was sent, and the first hop says that it has none; its link was made anew so often already."""
    return changed(stepping(route()), ONE, retries=retries, retried_at=0)


def stuck_between(receiver_retries: int, sender_retries: int) -> RouteState:
    """The first hop has computed the row, the second says that it has none."""
    state = changed(reported(stepping(route()), ONE, 1, 1), TWO, retries=receiver_retries, retried_at=0)
    return changed(state, ONE, retries=sender_retries, retried_at=0)


def carried() -> RouteState:
    """The link between the hops goes through the client."""
    pair = frozenset({(peer_of(ONE), peer_of(TWO))})
    return said(route(unreachable=pair), BETWEEN, "", through_client=True)


def replacing() -> RouteState:
    """Servers are being asked to take the first hop's place."""
    return dropped().opening(FIRST, False, 0.0)


class Case(NamedTuple):
    """At `now`, `state` calls for `actions`."""

    state: RouteState
    now: float
    actions: list[Action]
    policy: FailoverPolicy = POLICY


def drop(hop: int, error: ShoalError, avoid_for: float | None = None, unreachable: bool = True) -> Drop:
    """A Drop, of a server that is out of reach unless something else is said: avoided for longer if it was waited for."""
    usual_s = 320.0 if type(error) is NetworkError else 10.0
    return Drop(hop, error, usual_s if avoid_for is None else avoid_for, unreachable)


def open_first(without: frozenset[str] = frozenset(), **fields: Any) -> OpenSpan:
    """Servers for the first hop's blocks."""
    return OpenSpan(FIRST, without=without, **fields)


def follow_first(look_again_at: float) -> OpenSpan:
    """Others than its own server are asked to follow the first hop, since it may only seem to be busy."""
    return OpenSpan(FIRST, True, frozenset({peer_of(ONE)}), look_again_at=look_again_at, in_doubt=True)


def busy(worked_at: float = 0.0, **fields: Any) -> RouteState:
    """The first hop has a row and counts steps, in none of which that row is."""
    state = reported(stepping(route(**fields)), ONE, 1, 0, step_s=0.1)
    return changed(state, ONE, stepped_at=1e9, worked_at=worked_at)


def overtaken(follower_computed: int) -> RouteState:
    """The same, with a follower that was asked because of it."""
    state = reported(
        joined(busy().with_stage(FIRST, standbys=(hop_at(STANDBY, FIRST),), in_doubt=True)),
        STANDBY,
        1,
        follower_computed,
    )
    return asked(state).replaced(step=msgspec.structs.replace(state.step, relieved=(FIRST,)))


def seen(suspect: int, ends: LinkEnds, **fields: Any) -> RouteState:
    """A link was made anew, and the client sees since 0 s who keeps rows back there."""
    state = stuck_between(1, 1) if ends == BETWEEN else stuck_at_first_link(1)
    if ends == OUT:
        state = reported(reported(stepping(route()), ONE, 1, 1), TWO, 1, 1)
    return said(state.replaced(remade=frozenset({ends})), ends, "", suspect=suspect, **fields)


def lagging(**fields: Any) -> RouteState:
    """The second hop lacks a row since 0 s, and the first says something new all the time."""
    state = changed(reported(stepping(route(), rows=5), ONE, 5, 1), ONE, changed_at=1e9, stepped_at=1e9, worked_at=1e9)
    return said(changed(state, TWO, **fields), BETWEEN, "", lags_at=0)


NOT_FINITE = WrongRows("rows are not finite", relayed=True)
AHEAD = WrongRows("rows that were never sent", relayed=True, ahead=True)
IN_FULL = WrongRows("1 rows came with 3 bytes")


CASES: dict[str, Callable[[], Case]] = {
    # Nothing is wrong
    "a whole idle route is left alone": lambda: Case(route(), 1000.0, []),
    "an opening without a route": lambda: Case(RouteState(ALL), 0.0, [OpenSpan(ALL)]),
    "an opening is under way": lambda: Case(RouteState(ALL).opening(ALL, False, 0.0), 1.0, []),
    "hops without links are joined": lambda: Case(
        route().replaced(links=()), 0.0, [Connect(INTO), Connect(BETWEEN), Connect(OUT)]
    ),
    # A hop is lost
    "out of reach: avoided, and reported": lambda: Case(lost(GONE), 0.0, [drop(ONE, GONE)]),
    "its session failed once: it may be asked again": lambda: Case(lost(LOST), 50.0, [drop(ONE, LOST, 0.0, False)]),
    "its session failed twice: avoided": lambda: Case(
        lost(LOST).replaced(lost_at={peer_of(ONE): 45.0}), 50.0, [drop(ONE, LOST, 10.0, False)]
    ),
    "its session failed twice, long ago": lambda: Case(
        lost(LOST, delivers_since=35.0).replaced(lost_at={peer_of(ONE): 30.0}), 50.0, [drop(ONE, LOST, 0.0, False)]
    ),
    "long ago, and no row has come since: avoided": lambda: Case(
        lost(LOST).replaced(lost_at={peer_of(ONE): 30.0}), 50.0, [drop(ONE, LOST, 10.0, False)]
    ),
    "a journal that has forgotten rows again: avoided": lambda: Case(
        said(route(), BETWEEN, "gone", said_position=7).replaced(lost_at={peer_of(ONE): 30.0}),
        50.0,
        [drop(ONE, ShoalError("hop 1 no longer has rows 7 and on"), 10.0, False)],
    ),
    "it refused: avoided": lambda: Case(lost(FULL, refused=True), 0.0, [drop(ONE, FULL, 10.0, False)]),
    "it refused since it has moved: its next record tells": lambda: Case(
        lost(NotHeld("moved"), refused=True), 0.0, [drop(ONE, NotHeld("moved"), 0.0)]
    ),
    "one that stands by is lost": lambda: Case(
        changed(followed(route()), STANDBY, lost=GONE), 0.0, [drop(STANDBY, GONE)]
    ),
    "one that was asked to stand by refused": lambda: Case(
        route(strays=(hop_at(STANDBY, FIRST, lost=FULL, refused=True),)), 0.0, [drop(STANDBY, FULL, 10.0, False)]
    ),
    "dropped once, then replaced; its links are cut": lambda: Case(
        lost(GONE, dropped=True), 0.0, [open_first()]
    ),
    "its links are cut while servers are asked": lambda: Case(
        lost(GONE, dropped=True).opening(FIRST, False, 0.0), 0.0, [Disconnect(INTO), Disconnect(BETWEEN)]
    ),
    "while servers are asked nothing else is done": lambda: Case(replacing(), 1.0, []),
    "neighbours lost together are replaced together": lambda: Case(
        changed(dropped(), TWO, lost=GONE, dropped=True), 0.0, [OpenSpan(ALL)]
    ),
    "a neighbour lost later is replaced alone": lambda: Case(
        changed(replacing(), TWO, lost=GONE, dropped=True), 0.0, [OpenSpan(SECOND)]
    ),
    "avoided servers and those that leave are not asked": lambda: Case(
        changed(dropped(avoided={"x": 5.0, "y": 0.5}), TWO, leaving=True),
        1.0,
        [open_first(frozenset({"x", peer_of(TWO)}))],
    ),
    "the same arithmetic is asked for": lambda: Case(
        dropped(arithmetic=Arithmetic(blocks={0: ("k", "w")}, bits={0: 8.25})),
        0.0,
        [open_first(numerics="k", bits=8.25)],
    ),
    "a later process has the session": lambda: Case(
        lost(SessionFenced("taken")), 0.0, [GiveUp(SessionFenced("taken"))]
    ),
    "after giving up nothing is repaired": lambda: Case(dropped(given_up=GONE), 100.0, []),
    "too many replaced without a row": lambda: Case(
        dropped(replacements=65), 0.0, [GiveUp(NetworkError("64 hops failed one after another"))]
    ),
    # Nobody holds some blocks
    "none known: the swarm is asked first": lambda: Case(searching(), 0.0, [Refresh()]),
    "while the swarm is asked": lambda: Case(searching(asked=True, asking=True), 1.0, []),
    "after news: patience": lambda: Case(searching(asked=True), 1.0, [Wait(1.5, str(NO_SERVER), 61.0)]),
    "while waiting": lambda: Case(searching(asked=True, retry_at=1.5, deadline=61.0), 1.4, []),
    "after waiting the swarm is asked again": lambda: Case(
        searching(asked=True, retry_at=1.5, deadline=61.0), 1.5, [Refresh()]
    ),
    "the last wait ends at the deadline": lambda: Case(
        searching(asked=True, deadline=61.0), 60.8, [Wait(61.0, str(NO_SERVER), 61.0)]
    ),
    "patience is over": lambda: Case(searching(asked=True, deadline=61.0), 61.0, [GiveUp(NO_SERVER)]),
    "the opening has a patience of its own": lambda: Case(
        RouteState(ALL, search=Search(missing=NO_SERVER, asked=True)), 0.0, [GiveUp(NO_SERVER)],
        FailoverPolicy(opening_patience_s=0.0),
    ),
    "at the opening a full server is waited out": lambda: Case(
        RouteState(ALL, search=Search(missing=NO_SERVER, refusal=FULL, asked=True)),
        0.0,
        [Wait(0.5, str(NO_SERVER), 10.0)],
    ),
    "at the opening a server out of reach is waited out": lambda: Case(
        RouteState(ALL, search=Search(missing=NO_SERVER, refusal=GONE, asked=True)),
        0.0,
        [Wait(0.5, str(NO_SERVER), 10.0)],
    ),
    "at the opening a refusal is the answer in the end": lambda: Case(
        RouteState(ALL, search=Search(missing=NO_SERVER, refusal=FULL, asked=True, deadline=10.0)), 10.0, [GiveUp(FULL)]
    ),
    "more than a server grants is an answer at once": lambda: Case(
        RouteState(ALL, search=Search(missing=NO_SERVER, refusal=GrantExceeded("more"), asked=True)),
        0.0,
        [GiveUp(GrantExceeded("more"))],
    ),
    "what the servers did that were tried is told": lambda: Case(
        searching(asked=True, deadline=61.0).replaced(faults={"hop 1": "gone"}),
        61.0,
        [GiveUp(NoRoute("no server for 0:6 (hop 1: gone)"))],
    ),
    "at the opening a server that has moved is none": lambda: Case(
        RouteState(ALL, search=Search(missing=NO_SERVER, refusal=NotHeld("moved"), asked=True)),
        0.0,
        [Wait(0.5, str(NO_SERVER), 10.0)],
    ),
    "later a full server is waited out": lambda: Case(
        searching(asked=True, refusal=FULL), 1.0, [Wait(1.5, str(NO_SERVER), 61.0)]
    ),
    "later a refusal for good is an answer": lambda: Case(
        searching(asked=True, refusal=ShoalError("no")), 1.0, [GiveUp(ShoalError("no"))]
    ),
    "what refused says more than that there is none": lambda: Case(
        searching(asked=True, refusal=FULL, deadline=61.0), 61.0, [GiveUp(FULL)]
    ),
    "unless it was just out of reach": lambda: Case(
        searching(asked=True, refusal=GONE, deadline=61.0), 61.0, [GiveUp(NO_SERVER)]
    ),
    # A hop hangs, or a link brings nothing
    "has rows, makes no step: not yet": lambda: Case(reported(stepping(route()), ONE, 1, 0), 2.9, []),
    "has rows, makes no step": lambda: Case(
        reported(stepping(route()), ONE, 1, 0), 3.1, [drop(ONE, NetworkError("hop 1 beats but does not compute"))]
    ),
    "a slow hop is given eight of its steps, while others are asked to follow it": lambda: Case(
        reported(stepping(route()), ONE, 1, 0, step_s=1.0), 7.9, [follow_first(12.9)]
    ),
    "and not more": lambda: Case(
        reported(stepping(route()), ONE, 1, 0, step_s=1.0),
        8.1,
        [drop(ONE, NetworkError("hop 1 beats but does not compute"))],
    ),
    "a hop that counts steps and computes nothing: not yet": lambda: Case(busy(), 3.4, []),
    "others follow a hop that counts steps and computes nothing": lambda: Case(busy(), 3.6, [follow_first(8.6)]),
    "a hop that is as slow as usual is not followed": lambda: Case(
        busy().replaced(step=msgspec.structs.replace(busy().step, expected_s=1.0)), 3.9, []
    ),
    "a hop that has just computed is not followed": lambda: Case(busy(worked_at=1.0), 4.4, []),
    "a hop is overtaken by its follower": lambda: Case(
        overtaken(1), 3.6, [drop(ONE, NetworkError("hop 1 has had rows for 4 s and has computed few or none of them"))]
    ),
    "a follower that is behind too overtakes nobody": lambda: Case(
        changed(overtaken(0), STANDBY, worked_at=1.0), 3.6, []
    ),
    "a follower that has rows and computes none either is let go": lambda: Case(
        reported(asked(overtaken(0)), STANDBY, 1, 0),
        3.6,
        [drop(STANDBY, NetworkError("hop 3 has had rows for 4 s and has computed few or none of them"), unreachable=False)],
    ),
    "it has twice the time if it was dropped before": lambda: Case(
        reported(asked(overtaken(0)), STANDBY, 1, 0).replaced(drops={peer_of(STANDBY): 1}), 6.9, []
    ),
    "a follower that gets no rows": lambda: Case(
        said(reported(overtaken(0), STANDBY, 0, 0), LinkEnds(None, STANDBY, True), "", lags_at=0),
        3.6,
        [Disconnect(LinkEnds(None, STANDBY, True), reaches=False, stalled=True)],
    ),
    "one that takes none from the client either is let go": lambda: Case(
        said(
            reported(overtaken(0), STANDBY, 0, 0).replaced(remade=frozenset({LinkEnds(None, STANDBY, True)})),
            LinkEnds(None, STANDBY, True), "", lags_at=0, suspect=STANDBY,
        ),
        3.6,
        [drop(STANDBY, NetworkError("hop 3 answers, but no rows come over any link of it"))],
    ),
    "a hop that no other can follow is at fault in the end": lambda: Case(
        busy(), 60.1, [drop(ONE, NetworkError("hop 1 has had rows for 60 s and has computed few or none of them"))]
    ),
    "however long its steps are, as it says": lambda: Case(
        reported(stepping(route()), ONE, 1, 0, step_s=86400.0),
        60.1,
        [drop(ONE, NetworkError("hop 1 beats but does not compute"))],
    ),
    "who follows a hop in doubt goes when it has computed": lambda: Case(
        reported(overtaken(1), ONE, 1, 1), 0.1, [Dismiss(FIRST, 5.1)]
    ),
    "a hop that sends the client nothing: not yet": lambda: Case(seen(TWO, OUT), 0.9, []),
    "a hop that sends the client nothing": lambda: Case(seen(TWO, OUT), 1.1, [drop(TWO, SILENT_TWO)]),
    "a hop that takes nothing from the client": lambda: Case(seen(ONE, INTO), 1.1, [drop(ONE, SILENT_ONE)]),
    "a hop that takes nothing from the client, which carries": lambda: Case(
        seen(TWO, BETWEEN), 1.1, [drop(TWO, SILENT_TWO)]
    ),
    "a hop that sends nothing to the client, which carries": lambda: Case(
        seen(ONE, BETWEEN), 1.1, [drop(ONE, SILENT_ONE)]
    ),
    "what the client has seen for a moment only": lambda: Case(seen(ONE, BETWEEN, suspect_since=0.5), 1.4, []),
    "rows that came to be there a moment ago": lambda: Case(seen(ONE, BETWEEN, lags_since=0.5), 1.4, []),
    "few rows are a short frame for a slow link": lambda: Case(
        seen(ONE, BETWEEN), 1.1, [drop(ONE, SILENT_ONE)], FailoverPolicy(frame_s=64.0, frame_rows=64)
    ),
    "a receiver that lacks rows, whatever its sender says": lambda: Case(
        lagging(), 3.1, [Disconnect(BETWEEN, reaches=False, stalled=True)]
    ),
    "a receiver that has rows to compute lacks none": lambda: Case(
        lagging(progress=Pong(0, 0.0, 0.0, position=1)), 3.1, []
    ),
    "a hop whose own rows are not taken takes none": lambda: Case(
        reported(reported(stepping(route(), rows=5000), ONE, 2000, 2000), TWO, 0, 0), 3.1, [
            Disconnect(BETWEEN, reaches=False, stalled=True)
        ]
    ),
    # A hop is caught
    "rows of another form: caught for good": lambda: Case(
        lost(IN_FULL, TWO), 0.0, [Drop(TWO, IN_FULL, 600.0, lied=True)]
    ),
    "the first hop has nobody to blame": lambda: Case(lost(AHEAD), 0.0, [Drop(ONE, AHEAD, 600.0, lied=True)]),
    "rows that may have been made wrong before: its own fault, the first time": lambda: Case(
        lost(NOT_FINITE, TWO), 0.0, [Drop(TWO, NOT_FINITE, 600.0, suspects=(peer_of(ONE),))]
    ),
    "the second time it is the hop before": lambda: Case(
        lost(NOT_FINITE, TWO).suspected([peer_of(ONE)]),
        0.0,
        [
            Drop(ONE, WrongRows("rows are not finite, at the hops behind it"), 600.0),
            Drop(TWO, NOT_FINITE, 0.0),
        ],
    ),
    "rows that others may hold too: all begin anew": lambda: Case(
        lost(AHEAD, TWO),
        0.0,
        [
            Drop(ONE, ShoalError("hop 2 was caught on the same route"), 0.0),
            Drop(TWO, AHEAD, 600.0, suspects=(peer_of(ONE),)),
        ],
    ),
    "what a control channel never carries": lambda: Case(
        lost(ProtocolError("no")), 0.0, [Drop(ONE, ProtocolError("no"), 10.0)]
    ),
    "that a later process has a session which none can have": lambda: Case(
        lost(SessionFenced("taken")).replaced(private=True), 0.0, [Drop(ONE, SessionFenced("taken"), 600.0, lied=True)]
    ),
    "who was at fault is asked again while there is patience": lambda: Case(
        dropped(blamed=frozenset({"x"}), search=Search(deadline=61.0)), 60.9, [open_first()]
    ),
    "and not after that": lambda: Case(
        dropped(blamed=frozenset({"x"}), search=Search(deadline=61.0)), 61.0, [open_first(frozenset({"x"}))]
    ),
    "a server is avoided for twice as long each time": lambda: Case(
        lost(GONE).replaced(drops={peer_of(ONE): 3}), 0.0, [drop(ONE, GONE, 80.0)]
    ),
    "and not for ever": lambda: Case(
        lost(GONE).replaced(drops={peer_of(ONE): 5000}), 0.0, [drop(ONE, GONE, 640.0)]
    ),
    "a hop of a server that was dropped has twice the time": lambda: Case(
        changed(reported(stepping(route(drops={peer_of(ONE): 1})), ONE, 1, 0), ONE, worked_at=5.0), 5.9, []
    ),
    "and then it hangs too": lambda: Case(
        reported(stepping(route(drops={peer_of(ONE): 1})), ONE, 1, 0),
        6.1,
        [drop(ONE, NetworkError("hop 1 beats but does not compute"), 640.0)],
    ),
    "up to eight times": lambda: Case(
        reported(stepping(route(drops={peer_of(ONE): 9})), ONE, 1, 0),
        24.1,
        [drop(ONE, NetworkError("hop 1 beats but does not compute"), 640.0)],
    ),
    "so has a link of it": lambda: Case(
        changed(
            reported(stepping(route(drops={peer_of(TWO): 1})), ONE, 1, 1), TWO, retries=0, retried_at=0
        ),
        5.9,
        [],
    ),
    "who was caught is not asked again": lambda: Case(
        dropped(liars=frozenset({"x"})), 0.0, [open_first(frozenset({"x"}))]
    ),
    "between steps no hop hangs": lambda: Case(
        reported(stepping(route()), ONE, 1, 0).step_ended(False, 0.0), 100.0, []
    ),
    "rows that do not reach the next hop": lambda: Case(
        stuck_between(0, 0), 3.1, [Disconnect(BETWEEN, reaches=False, stalled=True)]
    ),
    "rows that do not reach it yet": lambda: Case(stuck_between(0, 0), 2.9, []),
    "a hop that has just moved on is not cut off": lambda: Case(
        changed(stuck_between(0, 0), ONE, changed_at=1.0), 3.9, []
    ),
    "a slow link is given the time for a frame": lambda: Case(
        stuck_between(0, 0), 4.9, [], FailoverPolicy(frame_s=5.0)
    ),
    "output that does not arrive": lambda: Case(
        reported(reported(stepping(route()), ONE, 1, 1), TWO, 1, 1),
        3.1,
        [Disconnect(OUT, reaches=False, stalled=True)],
    ),
    "rows that do not reach the first hop": lambda: Case(
        stuck_at_first_link(0), 3.1, [Disconnect(INTO, reaches=False, stalled=True)]
    ),
    "a hop that takes no rows over any link": lambda: Case(
        stuck_at_first_link(2),
        3.1,
        [drop(ONE, NetworkError("hop 1 answers, but no rows come over any link of it"))],
    ),
    "a receiver is blamed before its sender": lambda: Case(
        stuck_between(2, 2), 3.1, [drop(TWO, NetworkError("hop 2 answers, but no rows come over any link of it"))]
    ),
    "a sender whose rows reach no second receiver either": lambda: Case(
        stuck_between(2, 4), 3.1, [drop(ONE, NetworkError("hop 1 answers, but no rows come over any link of it"))]
    ),
    "a link that is being made is not judged": lambda: Case(
        said(stuck_between(0, 0), BETWEEN, "", made=False), 10.0, []
    ),
    "the sender cannot connect: not yet": lambda: Case(said(route(), BETWEEN, "down"), 0.9, []),
    "the sender cannot connect": lambda: Case(
        said(route(), BETWEEN, "down"), 1.1, [Disconnect(BETWEEN, reaches=False)]
    ),
    "a carried link is not tried directly yet": lambda: Case(carried(), 14.9, []),
    "a carried link is tried directly again": lambda: Case(carried(), 15.1, [Disconnect(BETWEEN, reaches=True)]),
    "a carried link is left alone in a step": lambda: Case(
        changed(reported(stepping(carried()), ONE, 1, 0, step_s=100.0), ONE, worked_at=19.0), 20.0, []
    ),
    "a journal has forgotten what the next hop needs": lambda: Case(
        said(route(), BETWEEN, "gone", said_position=7),
        0.0,
        [drop(ONE, ShoalError("hop 1 no longer has rows 7 and on"), 0.0, False)],
    ),
    "a journal has forgotten what a follower needs": lambda: Case(
        said(followed(route(), 1), LinkEnds(ONE, STANDBY, True), "gone"), 0.0, [Dismiss(SECOND)]
    ),
    # Standing by
    "nobody is asked to stand by": lambda: Case(route(), 0.0, []),
    "servers stand by for every stage": lambda: Case(
        route(),
        1.0,
        [
            OpenSpan(span, True, PEERS - {peer_of(STANDBY)}, look_again_at=6.0)
            for span in (FIRST, SECOND)
        ],
        REDUNDANT,
    ),
    "the next look for them is later": lambda: Case(
        route().with_stage(FIRST, look_again_at=6.0).with_stage(SECOND, look_again_at=6.0), 5.9, [], REDUNDANT
    ),
    "they are being asked": lambda: Case(
        route().opening(FIRST, True, 0.0).opening(SECOND, True, 0.0), 10.0, [], REDUNDANT
    ),
    "a stage that is followed is content": lambda: Case(
        followed(followed(route()), 1, 4), 0.0, [], REDUNDANT
    ),
    "a follower is linked to the hop before": lambda: Case(
        route().with_stage(SECOND, standbys=(hop_at(STANDBY, SECOND),)), 0.0, [Connect(LinkEnds(ONE, STANDBY, True))]
    ),
    "several that stand by together are linked in a row": lambda: Case(
        route().with_stage(SECOND, standbys=(hop_at(3, Span(6, 9)), hop_at(4, Span(9, 12)))),
        0.0,
        [Connect(LinkEnds(ONE, 3, True)), Connect(LinkEnds(3, 4))],
    ),
    "a lost hop that is followed": lambda: Case(
        changed(followed(route()), ONE, lost=GONE, dropped=True), 0.0, [Promote(FIRST)]
    ),
    "a late step is looked into": lambda: Case(late(), 0.26, [Probe(ONE), Probe(STANDBY), Probe(TWO)]),
    "a step is not late yet": lambda: Case(late(), 0.24, []),
    "four usual steps are not late": lambda: Case(
        late().replaced(step=msgspec.structs.replace(late().step, expected_s=0.1)), 0.39, []
    ),
    "after a question there is time for an answer": lambda: Case(asked(late()), 0.39, []),
    "a late hop is relieved by who stands by": lambda: Case(asked(late()), 0.41, [Promote(FIRST, keep_old=True)]),
    "a stage is relieved once in a step": lambda: Case(
        asked(late()).replaced(step=msgspec.structs.replace(late().step, relieved=(FIRST,))), 0.41, []
    ),
    "not by who is behind as well": lambda: Case(asked(late(follower_computed=-1)), 0.41, []),
    "nor where nobody stands by": lambda: Case(
        reported(reported(asked(late()), ONE, 1, 1), TWO, 1, 0), 0.41, []
    ),
    "a prefill takes as long as it takes": lambda: Case(
        reported(reported(stepping(followed(route()), rows=64), ONE, 64, 0), STANDBY, 64, 64), 1.0, []
    ),
    # Leaving
    "a hop that leaves is followed": lambda: Case(
        changed(route(), ONE, leaving=True),
        1.0,
        [OpenSpan(FIRST, True, PEERS - {peer_of(STANDBY)}, look_again_at=1.5, in_doubt=True)],
    ),
    "one that stays after all is followed no more": lambda: Case(
        stayed(), 1.0, [Dismiss(FIRST, 6.0)]
    ),
    "unless standing by was asked for": lambda: Case(
        followed(stayed(REDUNDANT), 1), 1.0, [], REDUNDANT
    ),
    "its follower is asked how far it is": lambda: Case(leaving(4), 1.0, [Probe(STANDBY)]),
    "and not all the time": lambda: Case(changed(leaving(4), STANDBY, probed_at=0.95), 1.0, []),
    "it goes when the follower has caught up": lambda: Case(leaving(12), 0.0, [Promote(FIRST)]),
    "rows of an older epoch do not count": lambda: Case(
        changed(leaving(20), STANDBY, heard_at=1.0).replaced(epoch=1), 1.0, []
    ),
}  # fmt: skip


def shown(action: Action) -> tuple[type[Action], dict[str, Any]]:
    """An action as something that can be compared: equal errors are not the same object."""
    fields = msgspec.structs.asdict(action)
    return type(action), {name: repr(value) if name == "error" else value for name, value in fields.items()}


@pytest.mark.parametrize("name", CASES)
def test_what_is_done(name: str) -> None:
    """One rule of failover, in one state."""
    case = CASES[name]()
    assert list(map(shown, decide(case.state, case.now, case.policy))) == list(map(shown, case.actions))


@pytest.mark.parametrize("name", CASES)
def test_nothing_is_done_twice(name: str) -> None:
    """Acting and deciding in turn comes to rest, whatever the first action was."""
    case = CASES[name]()
    state, taken = case.state, list[object]()
    while actions := decide(state, case.now, case.policy):
        for action in actions:
            assert shown(action) not in taken
            taken.append(shown(action))
            state = applied(state, action, case.now)
        assert len(taken) < 20


def test_the_page_has_the_figures() -> None:
    """Each figure of the policy stands in the table of docs/concepts/healing.md, as far as a session does not set it."""
    page = PAGE.read_text()
    figures = msgspec.structs.asdict(POLICY)
    assert figures.pop("redundancy") == 1
    assert figures.pop("frame_s") == 0.0
    assert [name for name, value in figures.items() if f"`{name}` {value:g}" not in page] == []


def test_a_broken_pair_is_joined_through_the_client() -> None:
    """The link that was cut is made anew, and not directly; other links are not touched."""
    state = applied(route(), Disconnect(BETWEEN, reaches=False), 5.0)
    assert decide(state, 5.0, POLICY) == [Connect(BETWEEN, through_client=True)]
    assert state.step.since == 5.0
    again = applied(carried(), Disconnect(BETWEEN, reaches=True), 20.0)
    assert decide(again, 20.0, POLICY) == [Connect(BETWEEN)]


def test_a_client_s_link_that_brings_nothing_is_made_anew() -> None:
    """There is nothing to join it through."""
    state = applied(stuck_at_first_link(0), Disconnect(INTO, reaches=False, stalled=True), 3.1)
    assert decide(state, 3.1, POLICY) == [Connect(INTO)]
    hop = state.hop(ONE)
    assert hop is not None
    assert (hop.retries, hop.retried_at) == (1, 0)


def test_rows_that_are_computed_excuse_a_hop() -> None:
    """Links that were made anew count while no row comes only."""
    hop = hop_at(ONE, FIRST).retried(5).retried(5)
    assert hop.retries == 2
    assert hop.retried(6).retries == 1


def test_who_relieves_and_who_is_relieved() -> None:
    """A late hop stands by for the one that took its place; one that is lost, or leaves, is gone."""
    kept = applied(asked(late()), Promote(FIRST, keep_old=True), 0.41)
    assert [hop.id for hop in kept.stages[0].hops] == [STANDBY, ONE]
    assert kept.step.since == 0.41
    gone = applied(leaving(20), Promote(FIRST), 0.0)
    assert [hop.id for hop in gone.hops] == [STANDBY, TWO]


def test_who_is_dismissed_is_not_followed_by_another() -> None:
    """The hop before would have forgotten the rows for that one as well."""
    state = applied(followed(route(), 1), Dismiss(SECOND), 0.0)
    assert state.stages[1].standbys == ()
    assert OpenSpan not in map(type, decide(applied_all(state, 0.0), 1e9, FailoverPolicy(redundancy=1)))
    assert state.stages[1].look_again_at == float("inf")


def applied_all(state: RouteState, now: float) -> RouteState:
    """With what a state calls for under way."""
    for action in decide(state, now, POLICY):
        state = applied(state, action, now)
    return state


def test_waiting_forgives() -> None:
    """Servers that were avoided may be asked after a wait, those first that were dropped least often; in this search only."""
    known = searching(asked=True).replaced(
        avoided={"w": 0.5, "x": 100.0, "y": 50.0, "z": 40.0}, drops={"x": 1, "y": 3, "z": 3}
    )
    state = applied(known, Wait(1.5, "blocks", 61.0), 1.0)
    assert state.avoided_now(1.0, state.search.lenience) == {"y", "z"}
    assert (state.search.retry_at, state.search.deadline) == (1.5, 61.0)
    again = applied(state, Wait(2.5, "blocks", 61.0), 2.0)
    assert again.avoided_now(2.0, again.search.lenience) == frozenset()
    assert again.avoided_now(2.0) == {"x", "y", "z"}
    (action,) = decide(again.replaced(search=msgspec.structs.replace(again.search, missing=None)), 2.5, POLICY)
    assert shown(action) == shown(open_first())


def test_a_server_at_fault_is_at_fault_at_all_its_hops() -> None:
    """They are dropped together, and that counts once."""
    state = changed(reported(stepping(route()), ONE, 1, 0), TWO, peer=peer_of(ONE))
    error = NetworkError("hop 1 beats but does not compute")
    actions = decide(state, 3.1, POLICY)
    assert list(map(shown, actions)) == [shown(drop(ONE, error)), shown(drop(TWO, error))]
    for action in actions:
        state = applied(state, action, 3.1)
    assert state.drops == {peer_of(ONE): 1}


def test_who_was_linked_to_a_hop_at_fault_is_excused() -> None:
    """That no rows came over those links says nothing of it any more."""
    state = applied(stuck_between(1, 1), drop(ONE, SILENT_ONE), 3.1)
    hop = state.hop(TWO)
    assert hop is not None
    assert hop.retries == 0


def test_news_are_asked_for_where_none_can_follow() -> None:
    """Servers that did not answer a while ago may be back; not all the time."""
    state = busy().replaced(stages=(msgspec.structs.replace(busy().stages[0], unfound=True), busy().stages[1]))
    assert list(map(shown, decide(state, 3.6, POLICY))) == [shown(Refresh()), shown(follow_first(8.6))]
    assert applied(state, Refresh(), 3.6).refreshed_at == 3.6
    assert list(map(shown, decide(state.replaced(refreshed_at=0.0), 3.6, POLICY))) == [shown(follow_first(8.6))]


def test_one_of_several_standbys_is_lost() -> None:
    """The others cover the span no more, and are let go too."""
    state = route().with_stage(SECOND, standbys=(hop_at(3, Span(6, 9)), hop_at(4, Span(9, 12), lost=GONE)))
    (action,) = decide(state, 0.0, POLICY)
    assert applied(state, action, 0.0).stages[1].standbys == ()


def test_a_stage_that_is_full_is_a_stage() -> None:
    """What a stage knows of itself."""
    stage = Stage(FIRST, hop_at(ONE, FIRST))
    assert not stage.ready
    assert stage.hops == (stage.primary,)
    assert joined(route()).whole
    assert hop_at(ONE, FIRST).progress == Pong(0, 0.0, 0.0)
