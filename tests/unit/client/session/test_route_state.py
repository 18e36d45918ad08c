"""What becomes of a route's state when hops are opened, lost and joined."""

from __future__ import annotations

import msgspec
import pytest

from shoal.client.session.route_state import Arithmetic, FailoverEvent, LinkEnds, RouteState, Search, Stage
from shoal.errors import DialError, NoRoute, ServerFull
from shoal.protocol.journal import FRAME_ROWS
from shoal.protocol.messages import Numerics, Pong
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
    route,
    said,
)

GONE = DialError("gone")
EXACT = Numerics("torch", "probe", "float32", exact=True)


def test_a_route_becomes_whole() -> None:
    """The opening is the first repair; it ends when every link is made."""
    state = RouteState(ALL).noted(1.0)
    assert state.failover == FailoverEvent("joining", 1.0)
    state = state.opening(ALL, False, 1.0).was_opened(0, [hop_at(ONE, FIRST), hop_at(TWO, SECOND)])
    assert not state.openings
    assert not state.noted(2.0).opened
    state = joined(state).noted(3.0)
    assert (state.opened, state.failover, state.step.since) == (True, None, 3.0)
    assert state.failovers == (FailoverEvent("joining", 1.0, 3.0, (), ("hop 1", "hop 2"), 0),)


def test_a_repair_says_who_went_and_who_came() -> None:
    """And how many rows are sent again."""
    state = changed(route(end=7), ONE, lost=GONE, dropped=True).noted(5.0)
    assert state.failover is not None
    assert state.failover.reason == "hop 1: gone"
    state = joined(state.opening(FIRST, False, 5.0).was_opened(0, [hop_at(9, FIRST)])).noted(6.0)
    assert state.failovers[-1] == FailoverEvent("hop 1: gone", 5.0, 6.0, ("hop 1",), ("hop 9",), 7)
    assert state.replacements == 1
    assert [hop.id for hop in state.primaries] == [9, TWO]


def test_several_hops_for_one() -> None:
    """A span is covered by those who were found for it; one that refused is lost, and is its own answer."""
    full = ServerFull("full")
    state = changed(route(), TWO, lost=GONE, dropped=True).opening(SECOND, False, 0.0)
    parts = [hop_at(8, Span(6, 9)), hop_at(9, Span(9, 12), lost=full, refused=True, joined=False)]
    state = state.was_opened(0, parts)
    assert [stage.span for stage in state.stages] == [FIRST, Span(6, 9), Span(9, 12)]
    assert state.search.refusal is full
    assert state.lost_runs() == [Span(9, 12)]


@pytest.mark.parametrize("late", [False, True], ids=["in time", "late"])
def test_who_was_asked_to_stand_by(late: bool) -> None:
    """They stand by, unless the stage has others by now."""
    state = route().opening(FIRST, True, 0.0)
    state = followed(state, 0, 7) if late else state
    state = state.was_opened(0, [hop_at(STANDBY, FIRST)])
    assert [hop.id for hop in state.stages[0].standbys] == [7 if late else STANDBY]
    assert state.strays == ()


def test_who_would_not_stand_by() -> None:
    """It is remembered until it has been dropped; with it go those that would have stood by together with it."""
    state = route().opening(FIRST, True, 0.0)
    lost = hop_at(9, Span(3, 6), lost=GONE, refused=True)
    state = state.was_opened(0, [hop_at(8, Span(0, 3)), lost])
    assert state.strays == (lost,)
    state = state.dropped(9, GONE, 10.0, 0.0)
    assert state.strays == ()
    assert state.avoided == {lost.peer: 10.0}
    assert state.lost_at == {}


def test_servers_that_are_not_there() -> None:
    """A search begins, unless they were to stand by only."""
    error = NoRoute("none")
    assert RouteState(ALL).opening(ALL, False, 0.0).not_opened(0, error, 0.0).search == Search(missing=error)
    assert route().opening(FIRST, True, 0.0).not_opened(0, error, 0.0).search == Search()


def test_links_that_should_be() -> None:
    """From end to end, and to those that stand by; none at a lost hop, and none before there are hops."""
    state = followed(followed(route()), 1, 4)
    assert state.wanted_links() == [
        LinkEnds(None, ONE), LinkEnds(ONE, TWO), LinkEnds(TWO, None),
        LinkEnds(None, STANDBY, True), LinkEnds(ONE, 4, True),
    ]  # fmt: skip
    lost = changed(state, ONE, lost=GONE)
    assert lost.wanted_links() == [LinkEnds(TWO, None), LinkEnds(None, STANDBY, True)]
    assert RouteState(ALL).wanted_links() == []


def test_a_link_that_is_being_made_is_not_there_yet() -> None:
    """A route is whole with all links made."""
    state = said(route(), LinkEnds(ONE, TWO), "", made=False)
    assert not state.whole
    assert state.noted(0.0).failover == FailoverEvent("joining", 0.0)


def test_what_is_usual_is_learnt_from_decoding_steps() -> None:
    """A prefill, or a step that came to nothing, says nothing about the next decoding step."""
    state = route()
    for rows, done, expected_s in ((64, True, 0.0), (1, False, 0.0), (1, True, 1.0), (1, True, 1.0)):
        state = state.step_begun(rows, 0.0).step_ended(done, 1.0)
        assert state.step.expected_s == pytest.approx(expected_s)
        assert not state.step.active


def test_arithmetic_is_compared_block_by_block() -> None:
    """The first rows decide what later hops are compared with; a block that was never computed has nothing to differ from."""
    blocks, same = Arithmetic().compared(FIRST, EXACT, ["w"] * 6, fresh=True)
    assert same
    known = Arithmetic(True, blocks)
    assert known.key(FIRST) == EXACT.key
    assert known.key(SECOND) is None
    other = msgspec.structs.replace(EXACT, kernel="another")
    assert known.compared(FIRST, other, ["w"] * 6, fresh=False) == (blocks, False)
    assert known.compared(FIRST, EXACT, ["v"] * 6, fresh=False)[1] is False
    assert known.compared(SECOND, other, ["w"] * 6, fresh=False)[1]
    assert known.compared(FIRST, other, ["w"] * 6, fresh=True)[1]
    assert not known.compared(FIRST, msgspec.structs.replace(EXACT, exact=False), ["w"] * 6, fresh=False)[1]


def test_bits_are_those_that_the_first_rows_went_through() -> None:
    """Of a span whose blocks had different ones there is no wish, nor of one whose server told none."""
    first = Arithmetic(bits=Arithmetic().told(FIRST, 8.25, fresh=True))
    both = Arithmetic(bits=first.told(SECOND, 4.25, fresh=False))
    assert [both.bits_of(span) for span in (FIRST, SECOND, ALL)] == [8.25, 4.25, None]
    assert Arithmetic(bits=both.told(FIRST, 4.25, fresh=False)).bits_of(FIRST) == 8.25
    assert Arithmetic(bits=both.told(FIRST, 4.25, fresh=True)).bits_of(ALL) == 4.25
    assert Arithmetic(bits=Arithmetic().told(FIRST, 0.0, fresh=True)).bits_of(FIRST) is None
    assert Arithmetic().bits_of(FIRST) is None


def test_trying_again_after_giving_up() -> None:
    """The search begins anew, and so does the count of replacements."""
    state = route(given_up=GONE, replacements=65, search=Search(asked=True)).retry()
    assert (state.given_up, state.replacements, state.search) == (None, 0, Search())


def test_a_stage_is_ready_with_live_hops_only() -> None:
    """One that is lost does not stand by."""
    stage = Stage(FIRST, hop_at(ONE, FIRST), (hop_at(STANDBY, FIRST),))
    assert stage.ready
    assert not msgspec.structs.replace(stage, standbys=(hop_at(STANDBY, FIRST, lost=GONE),)).ready


def test_since_when_a_receiver_lacks_rows() -> None:
    """Whatever its sender says meanwhile: only a frame of rows that it has got begins the count anew."""
    frame, end = FRAME_ROWS, 2 * FRAME_ROWS
    state = route(end=end)
    looks = (
        (1.0, 4, 0, 1.0),
        (2.0, 5, 1, 1.0),
        (3.0, end, frame - 1, 1.0),
        (4.0, end, frame, 4.0),
        (5.0, end, frame, 4.0),
    )
    for now, computed, has, since in looks:
        state = changed(state, ONE, progress=Pong(0, 0.0, 0.0, position=end, computed=computed))
        state = changed(state, TWO, progress=Pong(0, 0.0, 0.0, position=has, computed=0)).lagging(now)
        (link,) = (link for link in state.links if link.ends == LinkEnds(ONE, TWO))
        assert (link.lags_at, link.lags_since) == (has // frame * frame, since)
    state = changed(state, TWO, progress=Pong(0, 0.0, 0.0, position=end, computed=9)).lagging(6.0)
    lags = {link.ends: link.lags_at for link in state.links}
    assert lags == {LinkEnds(None, ONE): None, LinkEnds(ONE, TWO): None, LinkEnds(TWO, None): 0}
    assert all(link.lags_at is None for link in state.replaced(received=9).lagging(6.0).links)


def test_refusals_replace_nothing() -> None:
    """However often servers that are full are asked again; hops that were there and failed count."""
    refused = hop_at(ONE, FIRST, lost=ServerFull("full"), refused=True, joined=False)
    state = RouteState(FIRST).opening(FIRST, False, 0.0).was_opened(0, [refused])
    assert state.opening(FIRST, False, 1.0).replacements == 0
    assert changed(route(), ONE, lost=GONE, dropped=True).opening(FIRST, False, 1.0).replacements == 1


def test_what_is_counted_against_a_server() -> None:
    """Faults and silence, each time that it was avoided for them; no refusal that passes, and nothing that has an excuse.

    What is found at several hops of it at the same moment counts once.
    """
    state = route()
    for error, refused, avoid_until, drops in (
        (GONE, False, 10.0, 1),
        (GONE, True, 20.0, 2),
        (GONE, False, 20.0, 2),
        (ServerFull("full"), True, 30.0, 2),
        (GONE, False, 0.0, 2),
    ):
        state = changed(state.replaced(stages=route().stages), ONE, lost=error, refused=refused)
        state = state.dropped(ONE, error, avoid_until, 0.0)
        assert state.drops == {hop_at(ONE, FIRST).peer: drops}


def test_what_a_server_did_is_forgotten() -> None:
    """When rows have gone through its hop for a while; hops that only stand by have shown nothing."""
    one, standby, gone = (hop_at(number, FIRST).peer for number in (ONE, STANDBY, 9))
    state = followed(route()).replaced(
        drops={one: 2, standby: 1, gone: 1}, blamed=frozenset({one}), search=Search(deadline=5.0)
    )
    assert state.in_trouble
    state = state.progressed(100.0, 60.0)
    assert (state.drops, state.blamed, state.search) == ({one: 2, standby: 1, gone: 1}, frozenset(), Search())
    assert state.in_trouble
    assert state.progressed(159.0, 60.0).drops == state.drops
    state = state.progressed(160.0, 60.0)
    assert state.drops == {standby: 1, gone: 1}
    assert not state.in_trouble


def test_a_follower_that_is_not_to_be_had() -> None:
    """Those that are avoided may be asked the next time, the least bad ones first, until one has come; none as a mere spare."""
    state = route(avoided={"x": 50.0, "y": 50.0}, drops={"x": 1, "y": 2}).opening(FIRST, True, 0.0)
    spare = state.not_opened(0, NoRoute("none"), 1.0).stages[0]
    assert (spare.lenience, spare.unfound) == (-1, True)
    leaving = changed(state, ONE, leaving=True).not_opened(0, NoRoute("none"), 1.0).stages[0]
    assert (leaving.lenience, leaving.unfound) == (1, True)
    state = state.with_stage(FIRST, in_doubt=True).not_opened(0, NoRoute("none"), 1.0)
    assert (state.stages[0].lenience, state.stages[0].unfound) == (1, True)
    state = state.opening(FIRST, True, 2.0).was_opened(1, [hop_at(STANDBY, FIRST)])
    assert (state.stages[0].lenience, state.stages[0].unfound) == (-1, False)


def test_a_follower_that_joins_explains_nothing() -> None:
    """What took long until then has had no reason; a route that could not carry rows is one."""
    state = route().replaced(links=route().links[:2]).noted(1.0)
    assert not state.carried
    state = joined(state).noted(2.0)
    assert (state.carried, state.step.since) == (True, 2.0)
    state = state.with_stage(FIRST, standbys=(hop_at(STANDBY, FIRST),)).noted(3.0)
    assert (state.whole, state.carries, state.failover) == (False, True, FailoverEvent("joining", 3.0))
    state = joined(state).noted(4.0)
    assert (state.whole, state.step.since) == (True, 2.0)


def test_who_follows_in_doubt_makes_room_at_once() -> None:
    """Others are asked without a pause, where only one was asked for because of the doubt."""
    for in_doubt, look_again_at in ((True, 0.0), (False, 9.0)):
        state = followed(route()).with_stage(FIRST, look_again_at=9.0, in_doubt=in_doubt)
        assert state.dropped(STANDBY, GONE, 10.0, 1.0).stages[0].look_again_at == look_again_at


@pytest.mark.parametrize("active", [True, False])
def test_a_step_waits_no_longer_for_rows_than_for_servers(active: bool) -> None:
    """Its search for servers goes on through routes that are whole and carry nothing; between steps each has its own time."""
    state = changed(route(), ONE, lost=GONE, dropped=True).noted(5.0).replaced(search=Search(deadline=61.0))
    state = state.replaced(step=msgspec.structs.replace(state.step, active=active))
    state = joined(state.opening(FIRST, False, 5.0).was_opened(0, [hop_at(9, FIRST)])).noted(6.0)
    assert state.search == Search(deadline=61.0 if active else None)
    assert state.step_begun(1, 7.0).search == Search()
