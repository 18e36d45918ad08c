"""What follows from the progress that hops report: nothing, a loss, a bridge, a promotion."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import msgspec
import pytest

from shoal.client.session.failure_detector import DIRECT_AGAIN_S, DOWN_S, HEDGE_S, HUNG_S, POKE_S, STALLED_S
from shoal.client.session.supervisor import RouteSupervisor
from shoal.links.link import LinkKey
from shoal.protocol.messages import LinkState, Pong
from shoal.types import Span
from tests.support.virtual_clock import VirtualClock
from tests.unit.client.session.hops import FakeHop, chain_of

FIRST, SECOND = Span(0, 6), Span(6, 12)


class Scene:
    """Two hops and somebody who may stand by for the first; time moves when the test says so."""

    def __init__(self, supervisor: RouteSupervisor, hops: list[FakeHop], clock: VirtualClock) -> None:
        self.supervisor = supervisor
        self.one, self.two, self.follower = hops
        self.clock = clock

    def step(self, rows: int = 1) -> None:
        """The client sends rows and waits for them."""
        sender = self.supervisor.sender
        sender.append(rows)
        self.supervisor.watch.begin(rows)

    def report(self, hop: FakeHop, position: int, computed: int, step_s: float = 0.0) -> None:
        """A hop says how far it is."""
        hop.heartbeat.hear(
            msgspec.structs.replace(Pong(0, 0.0, 0.0), position=position, computed=computed, step_s=step_s)
        )

    def state(self, hop: FakeHop, receiver: FakeHop | None, state: str, follow: bool = False) -> None:
        """A hop says how one of its links is."""
        wire = self.supervisor.link_table.links_up[LinkKey(hop, receiver, follow)]
        hop._on_link(LinkState(wire.generation, state, 0))  # type: ignore[arg-type]

    async def wait(self, seconds: float) -> None:
        """Time passes; then the watch looks."""
        await self.clock.advance(seconds)
        self.supervisor.watch.look()
        await self.clock.settle()

    async def stand_by(self) -> None:
        """Somebody follows the first hop."""
        self.supervisor.stages[0].standbys = [self.follower]
        self.supervisor.attach(self.follower)
        await self.supervisor.failover.mend(self.supervisor.failovers[0])

    @property
    def broken(self) -> set[tuple[str, str]]:
        """Who does not reach whom."""
        return set(self.supervisor.link_table.broken)


@contextlib.asynccontextmanager
async def scene() -> AsyncIterator[Scene]:
    """An open chain, whose supervisor is the test."""
    clock = VirtualClock()
    hops = [FakeHop(FIRST, clock), FakeHop(SECOND, clock), FakeHop(FIRST, clock)]
    supervisor = chain_of(hops[:2], clock=clock)
    await supervisor.open(0.0)
    try:
        yield Scene(supervisor, hops, clock)
    finally:
        await supervisor.close()


async def test_a_hop_that_beats_and_does_not_compute_hangs() -> None:
    """It has rows, says so, and makes no step for HUNG_S; who has none is not at fault."""
    async with scene() as here:
        here.step()
        here.report(here.one, 1, 0)
        here.report(here.two, 0, 0)
        await here.wait(HUNG_S - 0.1)
        assert here.one.lost is None
        await here.wait(0.2)
        assert "does not compute" in str(here.one.lost)
        assert here.two.lost is None


async def test_a_slow_hop_is_given_eight_of_its_steps() -> None:
    """What is usual for it counts."""
    async with scene() as here:
        here.step()
        here.report(here.one, 1, 0, step_s=1.0)
        await here.wait(7.9)
        assert here.one.lost is None
        await here.wait(0.2)
        assert here.one.lost is not None


async def test_rows_that_do_not_arrive_are_carried() -> None:
    """The first hop has computed, the next one has nothing: the two do not reach each other, and neither is lost."""
    async with scene() as here:
        here.step()
        here.report(here.one, 1, 1)
        here.report(here.two, 0, 0)
        await here.wait(STALLED_S + 0.1)
        assert here.broken == {(here.one.peer, here.two.peer)}
        assert here.one.lost is here.two.lost is None


async def test_output_that_does_not_arrive_is_fetched_anew() -> None:
    """All hops have computed: the last link is the client's own, and there is nothing to bridge."""
    async with scene() as here:
        here.step()
        here.report(here.one, 1, 1)
        here.report(here.two, 1, 1)
        await here.wait(STALLED_S + 0.1)
        assert here.broken == set()
        assert (here.two, None, False) not in here.supervisor.link_table.links_up


async def test_a_sender_that_cannot_connect_is_believed_sooner() -> None:
    """Also while no step is under way."""
    async with scene() as here:
        here.state(here.one, here.two, "down")
        await here.wait(DOWN_S - 0.1)
        assert here.broken == set()
        await here.wait(0.2)
        assert here.broken == {(here.one.peer, here.two.peer)}


async def test_a_bridge_is_tried_directly_between_steps() -> None:
    """After DIRECT_AGAIN_S, and not while a step is under way."""
    async with scene() as here:
        here.supervisor.link_table.break_(LinkKey(here.one, here.two))
        await here.supervisor.failover.mend(here.supervisor.failovers[0])
        assert here.supervisor.link_table.links_up[LinkKey(here.one, here.two)].bridged
        here.step()
        here.report(here.one, 0, 0)
        here.clock._now += DIRECT_AGAIN_S + 1
        here.supervisor.watch.restart()
        here.supervisor.watch.look()
        assert here.broken != set()
        here.supervisor.watch.end(done=True)
        here.supervisor.watch.look()
        assert here.broken == set()


async def test_a_hop_whose_journal_has_forgotten_is_replaced() -> None:
    """What it no longer has, it must be given again."""
    async with scene() as here:
        here.state(here.one, here.two, "gone")
        await here.wait(0.0)
        assert "no longer has rows" in str(here.one.lost)


async def test_a_follower_that_cannot_be_fed_is_given_up() -> None:
    """The hop before it lives on; nobody else is asked to follow there."""
    async with scene() as here:
        stage = here.supervisor.stages[1]
        stage.standbys = [follower := FakeHop(SECOND, here.clock)]
        here.supervisor.attach(follower)
        await here.supervisor.failover.mend(here.supervisor.failovers[0])
        here.state(here.one, follower, "gone", follow=True)
        await here.wait(0.0)
        assert here.one.lost is None
        assert stage.standbys == []
        assert stage.look_again_at == float("inf")


@pytest.mark.parametrize("ahead", [True, False])
async def test_a_late_hop_is_relieved_by_who_stands_by(ahead: bool) -> None:
    """After HEDGE_S everybody is asked once more; POKE_S later the follower takes over, unless it is behind as well."""
    async with scene() as here:
        await here.stand_by()
        here.step()
        here.report(here.one, 1, 0)
        here.report(here.follower, 1, 1)
        if not ahead:
            here.report(here.follower, 1, -1)
        await here.wait(HEDGE_S + 0.01)
        assert here.follower.pinged == 1
        assert here.supervisor.controls[0] is here.one
        await here.wait(POKE_S + 0.01)
        assert (here.supervisor.controls[0] is here.follower) == ahead
        if ahead:
            assert here.supervisor.stages[0].standbys == [here.one]


async def test_a_prefill_is_not_hedged() -> None:
    """It takes as long as it takes."""
    async with scene() as here:
        await here.stand_by()
        here.step(rows=64)
        here.report(here.one, 64, 0)
        here.report(here.follower, 64, 64)
        await here.wait(HEDGE_S + 0.01)
        await here.wait(POKE_S + 0.01)
        assert here.supervisor.controls[0] is here.one


async def test_a_leaving_hop_goes_when_its_follower_has_caught_up() -> None:
    """Not before; the one that left is told that the session is over there."""
    async with scene() as here:
        await here.stand_by()
        here.step(rows=20)
        here.supervisor.watch.end(done=True)
        here.one.leaving = True
        here.report(here.follower, 4, 4)
        await here.wait(0.0)
        assert here.supervisor.controls[0] is here.one
        here.report(here.follower, 20, 20)
        await here.wait(0.0)
        assert here.supervisor.controls[0] is here.follower
        assert here.one.ended


async def test_what_is_usual_is_learnt_from_decoding_steps() -> None:
    """A prefill, or a step that came to nothing, says nothing about the next decoding step."""
    async with scene() as here:
        watch = here.supervisor.watch
        for rows, done, expected_s in ((64, True, 0.0), (1, False, 0.0), (1, True, 1.0), (1, True, 1.0)):
            watch.begin(rows)
            await here.clock.advance(1.0)
            watch.end(done)
            assert watch._expected_s == pytest.approx(expected_s)
