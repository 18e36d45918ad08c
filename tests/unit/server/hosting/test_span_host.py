"""What a server says of its blocks, and how it goes from some to others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from shoal.errors import CapacityError, NetworkError, ShoalError
from shoal.server.hosting import span_host as module
from shoal.server.hosting.span_host import SpanHost
from shoal.server.ledger import Ledger
from shoal.server.serve_options import ServeOptions
from shoal.server.sessions.hop_session import SessionGrant
from shoal.transport.frame_channel import FrameChannel
from shoal.types import PeerId, Span
from tests.unit.server.spans import MODEL, Network, loaded
from tests.unit.transport.pipe import Pipe

LEFT, RIGHT = Span(0, 4), Span(4, 8)


class Hosting:
    """A host whose blocks come at once, unless the test says that they cannot be had."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
        self.network = Network()
        self.lost: set[Span] = set()
        self.said: list[str] = []
        monkeypatch.setattr(module, "load", self._load)
        monkeypatch.setattr(module, "fetch", self._fetch)
        monkeypatch.setattr(module, "is_local", lambda source: False)
        monkeypatch.setattr(module, "max_blocks", lambda config, source: 4)
        self.ledger = Ledger(self.network.clock)
        self.host = SpanHost(
            ServeOptions(model="any", name="near", **options),
            SimpleNamespace(model=MODEL),  # type: ignore[arg-type]  # a source by its shape
            self.network,  # type: ignore[arg-type]  # a network by its shape
            lambda what, done, total: self.said.append(what),
            self.ledger,
        )

    def _load(self, config: Any, source: Any, span: Span, progress: Any) -> Any:
        if span in self.lost:
            raise CapacityError(f"no room for {span}")
        return loaded(span)

    def _fetch(self, source: Any, span: Span) -> None:
        if span in self.lost:
            raise NetworkError("the hub does not answer")

    async def session(self, attended: bool = False) -> None:
        """A session through the blocks that are served."""
        current = self.host.current
        grant = SessionGrant(b"s" * 16, b"k" * 16, current.span_info.span, 16, 30.0, 2, "fp32", 16)
        session = await current.sessions.open(grant, PeerId("c" * 64), lambda session, error: None)
        if attended:
            session.attend(FrameChannel(Pipe()))

    async def move(self, span: Span, deadline_s: float = 1.0) -> bool:
        """Move, while time passes."""
        moving = asyncio.ensure_future(self.host.move(span, deadline_s))
        while not moving.done():
            await self.network.clock.advance(0.1)
            await asyncio.sleep(0.001)  # blocks are loaded in a thread
        return await moving


@pytest.fixture
async def hosting(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Hosting]:
    """With the left half served."""
    made = Hosting(monkeypatch)
    await made.host.serve(LEFT)
    yield made
    await made.host.close()


async def test_nothing_is_said_before_there_is_something(monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing is harmless all the same."""
    host = Hosting(monkeypatch).host
    with pytest.raises(AssertionError, match="nothing has been served"):
        _ = host.current
    with pytest.raises(AssertionError, match="nothing has been announced"):
        _ = host.record
    assert host.failure is None
    await host.close()


async def test_loading_is_said_before_and_serving_after(hosting: Hosting) -> None:
    """Who joins meanwhile chooses other blocks; sessions are taken only when there is something to take them."""
    before, after = hosting.network.published
    assert (before.span, before.next_span, before.draining, before.numerics) == (LEFT, LEFT, True, "")
    assert (after.span, after.next_span, after.draining) == (LEFT, None, False)
    assert (before.bits_per_weight, before.kl_nats) == (0.0, None)
    assert (after.numerics, after.bits_per_weight, after.kl_nats) == ("torch/float32/" + "0" * 16, 16.0, 0.25)
    assert (after.name, after.max_blocks, after.on_disk) == ("near", 4, (LEFT,))
    assert hosting.network.services == [hosting.host.current.service]
    assert hosting.network.measured == [LEFT]
    assert hosting.host.record == after


async def test_who_chose_its_blocks_never_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its record says so, as it does for a server that is not to be counted on for now."""
    pinned = Hosting(monkeypatch, blocks=LEFT)
    await pinned.host.serve(LEFT)
    assert (pinned.host.movable, pinned.host.record.max_blocks) == (False, 0)
    await pinned.host.close()
    free = Hosting(monkeypatch)
    await free.host.serve(LEFT)
    for movable, max_blocks in ((False, 0), (True, 4)):
        free.host.set_movable(movable)
        free.host.announce()
        assert free.host.record.max_blocks == max_blocks
    await free.host.close()


async def test_a_measured_rate_goes_with_the_server(hosting: Hosting) -> None:
    """Through one block, until the other blocks are measured; through twice as many blocks it is half."""
    hosting.host.current.compute.stats.count(1, 100, 100, 1.0, decoding=False)
    hosting.host.announce()
    assert hosting.host.record.prefill_rows_per_s == 100.0
    assert await hosting.move(Span(0, 8))
    assert hosting.host.record.prefill_rows_per_s == 50.0


async def test_it_moves(hosting: Hosting) -> None:
    """It leaves first: no new sessions, no answers while it loads; the ledger counts one move."""
    await hosting.session()
    left = hosting.host.current
    assert await hosting.move(RIGHT)
    drained = next(record for record in hosting.network.published if record.next_span == RIGHT)
    assert (drained.span, drained.draining) == (LEFT, True)
    assert hosting.network.services == [left.service, None, hosting.host.current.service]
    assert len(left.sessions) == 0
    assert (hosting.host.record.span, hosting.host.record.next_span) == (RIGHT, None)
    assert hosting.ledger.totals.moves == 1
    assert hosting.host.record.on_disk == (Span(0, 8),)


async def test_it_stays_for_a_client_that_finds_no_other_server(hosting: Hosting) -> None:
    """The blocks are kept, and sessions are taken again."""
    await hosting.session(attended=True)
    left = hosting.host.current
    assert not await hosting.move(RIGHT)
    assert hosting.host.current is left
    assert not left.leaving
    assert (hosting.host.record.next_span, hosting.host.record.draining) == (None, False)
    assert hosting.network.services == [left.service]
    assert hosting.ledger.totals.moves == 0


async def test_it_goes_back_when_the_others_cannot_be_loaded(hosting: Hosting) -> None:
    """It serves the same as before, from a fresh start, and says why."""
    hosting.lost = {RIGHT}
    left = hosting.host.current
    assert not await hosting.move(RIGHT)
    assert hosting.host.current is not left
    assert (hosting.host.record.span, hosting.host.record.next_span) == (LEFT, None)
    assert any("no room for 4:8" in what for what in hosting.said)
    assert hosting.host.failure is None


async def test_it_cannot_go_back_either(hosting: Hosting) -> None:
    """That is the end of the server, which is told by `failure`."""
    hosting.lost = {LEFT, RIGHT}
    with pytest.raises(CapacityError, match="no room for 0:4"):
        await hosting.move(RIGHT)
    assert isinstance(hosting.host.failure, CapacityError)
    assert hosting.network.services[-1] is None


async def test_a_dead_compute_thread_is_a_failure(hosting: Hosting) -> None:
    """Named, with its cause."""

    def die() -> None:
        raise KeyboardInterrupt

    with pytest.raises(ShoalError):
        await hosting.host.current.compute.between_steps(die)
    failure = hosting.host.failure
    assert failure is not None
    assert "the compute thread died: KeyboardInterrupt" in str(failure)
    assert isinstance(failure.__cause__, KeyboardInterrupt)


async def test_blocks_that_were_fetched_are_on_the_disk(hosting: Hosting) -> None:
    """And those that could not be are not."""
    await hosting.host.fetch(Span(5, 6))
    assert hosting.host.inventory.spans() == (LEFT, Span(5, 6))
    hosting.lost = {Span(6, 7)}
    with pytest.raises(NetworkError):
        await hosting.host.fetch(Span(6, 7))
    assert hosting.host.inventory.spans() == (LEFT, Span(5, 6))


async def test_a_plan_is_announced(hosting: Hosting) -> None:
    """At once, and it stays in later records."""
    plan = (("ab" * 4, RIGHT),)
    hosting.host.announce_plan(plan)
    hosting.host.announce()
    assert [record.plan for record in hosting.network.published[-2:]] == [plan, plan]
    await hosting.host.look_around()
    assert hosting.network.measured == [LEFT, LEFT]


async def test_a_plan_does_not_outlive_a_move(hosting: Hosting) -> None:
    """While a server moves another one is the author; what it planned before must not count when it is back."""
    hosting.host.announce_plan((("ab" * 4, LEFT),))
    seen = len(hosting.network.published)
    assert await hosting.move(RIGHT)
    assert {record.plan for record in hosting.network.published[seen:]} == {()}


async def test_it_leaves_for_good(hosting: Hosting) -> None:
    """Those that did not move are counted, and no goal is left."""
    await hosting.session()
    hosting.host.announce_goal(RIGHT)
    leaving = asyncio.ensure_future(hosting.host.leave(1.0))
    await hosting.network.clock.advance(2.0)
    assert await leaving == 1
    assert (hosting.host.record.draining, hosting.host.record.next_span) == (True, None)
