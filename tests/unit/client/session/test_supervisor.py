"""A supervisor does what failover says, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import msgspec
import pytest

from shoal.client.session.failover import FailoverPolicy
from shoal.client.session.route_state import ends_of
from shoal.client.session.supervisor import SLOW_BYTES_PER_S
from shoal.errors import DialError, NoRoute, NotHeld, ServerFull, SessionFenced, ShoalError, WrongRows
from shoal.protocol.journal import FRAME_ROWS
from shoal.protocol.messages import LinkState, Pong
from shoal.types import Span
from tests.support.virtual_clock import VirtualClock
from tests.swarms import until
from tests.unit.client.session.hops import EXACT, FakeHop, FakeSupervisor

FIRST, SECOND = Span(0, 6), Span(6, 12)


@contextlib.asynccontextmanager
async def opened(*hops: FakeHop, **options: object) -> AsyncIterator[FakeSupervisor]:
    """A supervisor of an open route over these hops."""
    supervisor = FakeSupervisor(hops, **options)
    try:
        await supervisor.open(0.0)
        yield supervisor
    finally:
        await supervisor.close()


def made(supervisor: FakeSupervisor) -> set[tuple[FakeHop | None, FakeHop | None, bool]]:
    """The links that are made."""
    hops = {hop.id: supervisor.planner.hop(hop.peer) for hop in supervisor.state.hops}
    links = [link.ends for link in supervisor.state.links if link.made]
    return {
        (None if sender is None else hops[sender], None if receiver is None else hops[receiver], follow)
        for sender, receiver, follow in links
    }


async def test_hops_are_joined_from_end_to_end() -> None:
    """The client feeds the first, each is told of the next, and the last answers the client."""
    one, two = FakeHop(FIRST), FakeHop(SECOND)
    async with opened(two, one) as supervisor:
        assert made(supervisor) == {(None, one, False), (one, two, False), (two, None, False)}
        assert one.redirects[0].record == two.record.data
        assert two.redirects[0].elide
        assert supervisor.state.opened
    assert one.ended
    assert two.ended


@pytest.mark.parametrize("chunk", [1, 64, 1024])
def test_a_link_is_waited_for_as_long_as_a_frame_may_take(chunk: int) -> None:
    """However a prompt is cut: no frame has more rows than the journal sends at once, and a server's may have as many."""
    supervisor = FakeSupervisor([], prefill_chunk_rows=chunk)
    policy = supervisor._policy
    assert policy.frame_rows == FRAME_ROWS
    assert policy.frame_s == FRAME_ROWS * supervisor.terms.row_bytes / SLOW_BYTES_PER_S


async def test_a_frozen_hop_holds_up_its_own_links_only() -> None:
    """While one hop does not answer an order, another dies: it is replaced and joined meanwhile."""
    one, two, standing_by, substitute = FakeHop(FIRST), FakeHop(SECOND), FakeHop(FIRST), FakeHop(SECOND)
    async with opened(one, two, redundancy=2) as supervisor:
        standing_by.frozen = True
        supervisor._state = supervisor.state.with_stage(FIRST, look_again_at=0.0)
        supervisor.planner.known += [standing_by]
        supervisor.stir()
        await until(lambda: standing_by.asked > 0)
        supervisor.planner.known += [substitute]
        two.fail(DialError("gone"))
        await until(lambda: (one, substitute, False) in made(supervisor))
        assert standing_by.lost is None
        assert standing_by.admitted == []


async def test_a_link_that_is_not_wanted_any_more_is_not_waited_for() -> None:
    """A hop that died while its neighbour was told of it is gone from the links being made."""
    one, two, substitute = FakeHop(FIRST), FakeHop(SECOND), FakeHop(SECOND)
    supervisor = FakeSupervisor([one, two])
    two.frozen = True
    opening = asyncio.create_task(supervisor.open(0.0))
    await until(lambda: two.asked > 0)
    supervisor.planner.known += [substitute]
    two.fail(DialError("gone"))
    await opening
    assert made(supervisor) == {(None, one, False), (one, substitute, False), (substitute, None, False)}
    await supervisor.close()


async def test_a_lost_hop_is_reported_and_released() -> None:
    """One out of reach is in no new route; it may be alive, and is told to free what it holds."""
    one, two, substitute = FakeHop(FIRST), FakeHop(SECOND), FakeHop(SECOND)
    async with opened(one, two) as supervisor:
        supervisor.planner.known += [substitute]
        two.fail(DialError("gone"))
        await until(lambda: substitute in supervisor.hops and supervisor.state.whole)
        assert supervisor.planner.failures == [two.peer]
        assert two.ended
        events = supervisor.state.failovers
        assert [(event.lost, event.found) for event in events[1:]] == [((two.name,), (substitute.name,))]


@pytest.mark.parametrize(
    ("error", "reported", "avoided"),
    [(NotHeld("moved"), True, False), (ServerFull("full"), False, True), (DialError("gone"), True, True)],
)
async def test_a_server_that_refuses(error: ShoalError, reported: bool, avoided: bool) -> None:
    """One that has moved waits for its next record, one that is full is left alone."""
    only = FakeHop(Span(0, 12))
    only.refusal = error
    supervisor = FakeSupervisor([only])
    with pytest.raises(NoRoute if isinstance(error, NotHeld) else type(error)):
        await supervisor.open(0.0)
    assert bool(supervisor.planner.failures) == reported
    assert bool(supervisor.state.avoided) == avoided
    assert supervisor.planner.refreshed == 1
    assert supervisor.told > 0
    await supervisor.close()


async def test_a_hop_that_leaves_is_closed_when_its_follower_has_caught_up() -> None:
    """Its session is over there; nothing was lost."""
    one, two = FakeHop(FIRST), FakeHop(SECOND)
    async with opened(one, two) as supervisor:
        follower = FakeHop(FIRST)
        supervisor.planner.known += [follower]
        one.leaving = True
        supervisor.stir()
        await until(lambda: follower in supervisor.hops and supervisor.state.whole)
        await until(lambda: one.ended)
        assert not any(event.lost for event in supervisor.state.failovers)


async def test_a_follower_is_asked_how_far_it_is() -> None:
    """A probe is a ping."""
    one, follower = FakeHop(Span(0, 12)), FakeHop(Span(0, 12))
    async with opened(one) as supervisor:
        supervisor._sender.append(100)
        supervisor.planner.known += [follower]
        one.leaving = True
        supervisor.stir()
        await until(lambda: follower.pinged > 0)
        assert supervisor.hops == [one]


@pytest.mark.parametrize("exact", [False, True])
async def test_other_arithmetic_after_the_first_rows(exact: bool) -> None:
    """It is refused, or the session is not exact any more."""
    one, two = FakeHop(FIRST), FakeHop(SECOND)
    other = FakeHop(SECOND, numerics=msgspec.structs.replace(EXACT, kernel="another"))
    async with opened(one, two, exact=exact, patience_s=0.0) as supervisor:
        supervisor._sender.append(1)
        supervisor.planner.known += [other]
        two.fail(DialError("gone"))
        await until(lambda: supervisor.state.given_up is not None or len(supervisor.state.failovers) == 2)
        assert (other.lost is not None) == exact
        assert supervisor.state.arithmetic.exact == exact
        assert supervisor.state.whole != exact


async def test_what_a_hop_says_of_a_link_is_seen() -> None:
    """A journal that has forgotten rows ends the hop's part."""
    one, two = FakeHop(FIRST), FakeHop(SECOND)
    async with opened(one, two, patience_s=0.0) as supervisor:
        (link,) = [link for link in supervisor.state.links if link.ends == ends_of(*supervisor.state.primaries)]
        one._on_link(LinkState(link.generation, "gone", "", 7))
        await until(lambda: one.lost is not None)
        assert "no longer has rows 7" in str(one.lost)


async def test_a_step_tries_again_what_was_given_up() -> None:
    """Unless a later process has the session."""
    one = FakeHop(Span(0, 12))
    async with opened(one, patience_s=0.0) as supervisor:
        one.fail(DialError("gone"))
        await until(lambda: supervisor.stuck is not None)
        back = FakeHop(Span(0, 12))
        supervisor.planner.known += [back]
        supervisor.begin_step(1)
        await until(lambda: supervisor.hops == [back] and supervisor.state.whole)
        assert back.heartbeat.active
        supervisor.end_step(True)
        back.fail(SessionFenced("taken up"))
        await until(lambda: supervisor.stuck is not None)
        supervisor.begin_step(1)
        assert isinstance(supervisor.stuck, SessionFenced)


async def test_a_process_that_was_stopped_blames_nobody() -> None:
    """Its clock went on, and nothing was heard meanwhile: that proves nothing."""
    clock = VirtualClock()
    one = FakeHop(Span(0, 12), clock)
    async with opened(one, clock=clock) as supervisor:
        one.heartbeat.hear(Pong(0, 0.0, 0.0, position=1))
        supervisor._sender.append(1)
        supervisor.begin_step(1)
        clock._now += FailoverPolicy().hung_s + 1
        supervisor.look()
        assert one.lost is None
        for _ in range(40):
            clock._now += 0.1
            supervisor.look()
        assert "does not compute" in str(one.lost)


async def test_rows_that_come_through_forgive_replacements() -> None:
    """Only those without a row in between count."""
    async with opened(FakeHop(Span(0, 12))) as supervisor:
        supervisor._state = supervisor.state.replaced(replacements=3)
        supervisor.progressed()
        assert supervisor.state.replacements == 0


async def test_no_task_outlives_a_session() -> None:
    """However it ends: after an open route, while it is opened, and twice."""
    before = asyncio.all_tasks()
    one, two = FakeHop(FIRST), FakeHop(SECOND)
    async with opened(one, two):
        assert len(asyncio.all_tasks()) > len(before)
    assert asyncio.all_tasks() == before
    frozen = FakeHop(Span(0, 12))
    frozen.frozen = True
    supervisor = FakeSupervisor([frozen])
    opening = asyncio.create_task(supervisor.open(0.0))
    await until(lambda: frozen.asked > 0)
    opening.cancel()
    await asyncio.gather(opening, return_exceptions=True)
    await supervisor.close()
    await supervisor.close()
    assert frozen.ended
    assert asyncio.all_tasks() == before


async def test_a_mistake_in_a_task_ends_the_session_with_it() -> None:
    """It is no server's fault, and is not waited out."""
    one = FakeHop(Span(0, 12))
    supervisor = FakeSupervisor([one])
    one.refusal = ZeroDivisionError("a mistake")  # type: ignore[assignment]
    with pytest.raises(ZeroDivisionError):
        await supervisor.open(60.0)
    assert supervisor.told > 0
    await supervisor.close()


async def test_a_caught_hop_comes_last_from_then_on() -> None:
    """So does one that was judged; one that was only out of reach does not."""
    one, two, back = FakeHop(FIRST), FakeHop(SECOND), FakeHop(SECOND)
    async with opened(one, two) as supervisor:
        supervisor.planner.known += [back]
        two.fail(WrongRows("rows are not finite"))
        await until(lambda: supervisor.hops == [one, back] and supervisor.state.whole)
        assert supervisor.planner.liars == [two.peer]
        assert two.peer in supervisor.state.liars
        again = FakeHop(SECOND)
        supervisor.planner.known += [again]
        back.fail(DialError("gone"))
        await until(lambda: supervisor.hops == [one, again] and supervisor.state.whole)
        assert supervisor.planner.liars == [two.peer]


@pytest.mark.parametrize("private", [True, False])
async def test_a_later_process_of_a_session_that_none_can_know(private: bool) -> None:
    """The hop that says so is replaced; a session that was saved ends, as a later process may have it."""
    one = FakeHop(Span(0, 12))
    async with opened(one) as supervisor:
        supervisor.keep_private(private)
        supervisor.planner.known += [other := FakeHop(Span(0, 12))]
        one.fail(SessionFenced("taken up"))
        await until(lambda: supervisor.stuck is not None or (supervisor.hops == [other] and supervisor.state.whole))
        assert (supervisor.stuck is None) == private
