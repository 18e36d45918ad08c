"""Blocks from the first session to the last."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from shoal.server.hosting.served_span import DRAIN_POLL_S, ServedSpan
from shoal.server.ledger import Ledger, Totals
from shoal.server.sessions.hop_session import HopSession, SessionGrant
from shoal.transport.frame_channel import FrameChannel
from shoal.types import PeerId
from tests.unit.server.spans import HELD, Network, loaded
from tests.unit.transport.pipe import Pipe

CLIENT = PeerId("c" * 64)


class Serving:
    """A span that is served, in a network of its own."""

    def __init__(self) -> None:
        self.network = Network()
        self.ledger = Ledger(self.network.clock)
        self.blocks = loaded()
        self.span = ServedSpan(self.blocks, self.network, 4, self.ledger)  # type: ignore[arg-type]  # by its shape

    async def session(self, letter: str = "s") -> HopSession:
        """One more."""
        grant = SessionGrant(letter.encode() * 16, b"k" * 16, HELD, 16, 30.0, 2, "fp32", 16)
        return await self.span.sessions.open(grant, CLIENT, lambda session, error: None)


@pytest.fixture
async def serving() -> AsyncIterator[Serving]:
    """Its compute thread runs."""
    made = Serving()
    await made.span.start()
    yield made
    await made.span.close()


async def test_giving_it_up_closes_what_is_left(serving: Serving) -> None:
    """Pages come back, and the server's ledger has the rows; a second time nothing is counted."""
    session = await serving.session()
    pages = serving.blocks.runner.cache.pages
    assert pages.granted
    serving.span.compute.stats.count(1, 7, 7, 0.1, decoding=False, found_rows=2)
    await serving.span.close()
    await serving.span.close()
    assert session.closed.is_set()
    assert (len(serving.span.sessions), pages.granted) == (0, 0)
    assert serving.ledger.totals == Totals(rows=7, found_rows=2)


async def test_it_waits_for_sessions_to_move(serving: Serving) -> None:
    """Until the last has, and no longer."""
    session = await serving.session()
    serving.span.begin_leaving(60.0)
    assert serving.span.leaving
    waiting = asyncio.ensure_future(serving.span.emptied())
    await serving.network.clock.advance(10.0)
    assert not waiting.done()
    await serving.span.sessions.close(session)
    await serving.network.clock.advance(DRAIN_POLL_S)
    assert await waiting == 0


async def test_sessions_that_do_not_move_are_counted_at_the_deadline(serving: Serving) -> None:
    """It can stay then: new sessions are taken again."""
    await serving.session()
    serving.span.begin_leaving(5.0)
    waiting = asyncio.ensure_future(serving.span.emptied())
    await serving.network.clock.advance(5.0 + DRAIN_POLL_S)
    assert await waiting == 1
    serving.span.stay()
    assert not serving.span.leaving
    assert await serving.span.emptied() == 1


async def test_whose_clients_are_there(serving: Serving) -> None:
    """A control channel that is up makes a session attended."""
    first, _ = await serving.session("a"), await serving.session("b")
    assert serving.span.attended == 0
    frames = FrameChannel(Pipe())
    first.attend(frames)
    assert serving.span.attended == 1
    first.unattend(frames)
    assert serving.span.attended == 0
