"""The client's orders for a session at one hop, and the hop's news."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from shoal.engine.compute_stats import ComputeStats
from shoal.errors import ProtocolError
from shoal.protocol.messages import (
    Admit,
    Admitted,
    Close,
    LinkGrant,
    LinkState,
    Message,
    Numerics,
    Opened,
    Ping,
    Pong,
    Redirect,
    Refusal,
    Rewind,
    RowsFrame,
)
from shoal.server.sessions.control_channel import ControlChannel
from shoal.server.sessions.hop_session import FIRST_ROWS_S
from shoal.swarm.directory.records import ACCEPTANCE_LIFETIME_S, verify_acceptance
from shoal.transport.frame_channel import FrameChannel
from shoal.transport.token_bucket import TokenBucket
from tests.unit.links.test_row_sender import messages
from tests.unit.server.sessions.test_hop_session import CLIENT, NEXT, ROW
from tests.unit.server.sessions.test_redirector import ME, Ordered
from tests.unit.transport.pipe import Pipe, turns

GRANT = LinkGrant(1, NEXT, b"t" * 16)


class Controlled(Ordered):
    """A session whose client is connected."""

    def __init__(self) -> None:
        super().__init__()
        self.compute = self.hop.compute
        self.compute.stats = ComputeStats()  # type: ignore[attr-defined]  # which pongs tell
        self.compute.stats.steps = 3  # type: ignore[attr-defined]
        self.pipe = Pipe()
        self.frames = FrameChannel(self.pipe)
        self.control = ControlChannel(self.frames, self.session, ME, self.redirector)
        self.serving = asyncio.ensure_future(self.control.serve())

    async def say(self, message: Message) -> list[Message]:
        """An order; what came back."""
        before = len(self.heard)
        self.pipe.arrive(message)
        await turns()
        return self.heard[before:]

    @property
    def heard(self) -> list[Message]:
        """All that came back."""
        return list(messages(self.pipe))


@pytest.fixture
async def controlled() -> AsyncIterator[Controlled]:
    """Its channel is served."""
    made = Controlled()
    async with made.redirector:
        await turns()
        yield made
        made.session.close()
        await asyncio.gather(made.serving, return_exceptions=True)


async def test_a_ping_renews_the_lease(controlled: Controlled) -> None:
    """Its answer says how far the hop has come."""
    controlled.session.take(RowsFrame(0, 0, 1, 0), ROW, 0)
    await controlled.hop.clock.advance(20.0)
    [pong] = await controlled.say(Ping(7))
    assert isinstance(pong, Pong)
    assert (pong.id, pong.epoch, pong.position, pong.computed, pong.steps) == (7, 0, 0, 0, 3)
    assert controlled.session.expires_at == controlled.hop.clock.monotonic() + 30.0


async def test_the_lease_is_short_before_the_first_rows(controlled: Controlled) -> None:
    """Pings renew it, for a little each time: whoever opens sessions and goes away does not hold them for long."""
    assert controlled.session.expires_at == FIRST_ROWS_S
    await controlled.hop.clock.advance(4.0)
    await controlled.say(Ping(1))
    assert controlled.session.expires_at == 4.0 + FIRST_ROWS_S


async def test_other_orders_do_not_renew_it(controlled: Controlled) -> None:
    """A channel that is only fed by links keeps no session alive."""
    controlled.session.take(RowsFrame(0, 0, 1, 0), ROW, 0)
    await controlled.hop.clock.advance(20.0)
    await controlled.say(Rewind(1, 0, 0))
    assert controlled.session.expires_at == 30.0


async def test_who_may_feed_it_is_signed_for(controlled: Controlled) -> None:
    """For this session, this node, that link, and a while."""
    [admitted] = await controlled.say(Admit(GRANT))
    assert isinstance(admitted, Admitted)
    now = controlled.hop.clock.wall()
    acceptance = verify_acceptance(admitted.acceptance, now)
    assert (acceptance.session, acceptance.peer, acceptance.upstream) == (b"s" * 16, ME.peer, NEXT)
    assert (admitted.generation, acceptance.generation) == (1, 1)
    assert acceptance.expires_at == pytest.approx(now + ACCEPTANCE_LIFETIME_S)
    assert controlled.session.upstream == GRANT
    assert not controlled.session.log.journal.standing_by
    await controlled.say(Admit(LinkGrant(2, NEXT, b"t" * 16), follow=True))
    assert controlled.session.log.journal.standing_by


async def test_what_was_granted(controlled: Controlled) -> None:
    """Told first of all, with the acceptance of who feeds it."""
    opened = controlled.control.opened(GRANT, Numerics("torch", "p", "float32"), ("w",))
    pipe = Pipe()
    control = ControlChannel(FrameChannel(pipe), controlled.session, ME, controlled.redirector)
    serving = asyncio.ensure_future(control.serve(opened))
    await turns()
    assert list(messages(pipe)) == [opened]
    assert isinstance(opened, Opened)
    assert (opened.max_tokens, opened.lease_s, opened.weights) == (50, 30.0, ("w",))
    assert verify_acceptance(opened.acceptance, controlled.hop.clock.wall()).generation == 1
    controlled.session.close()
    await serving


async def test_output_goes_where_the_client_says(controlled: Controlled) -> None:
    """News of the link come by themselves."""
    [ready] = await controlled.say(Redirect(LinkGrant(4, CLIENT, b"u" * 16), elide=True))
    assert ready == LinkState(4, "ready")
    assert controlled.session.outgoing[False].elide


async def test_a_rewind_truncates(controlled: Controlled) -> None:
    """At the compute thread too."""
    await controlled.hop.feed()
    controlled.hop.rows(0, count=2)
    assert await controlled.say(Rewind(1, 1, 0)) == []
    assert ("rewind", 1) in controlled.compute.orders


async def test_close_ends_the_session_and_a_lost_channel_does_not(controlled: Controlled) -> None:
    """The caller closes it in the first case only."""
    assert await controlled.say(Close()) == []
    assert await controlled.serving is True
    assert not controlled.session.attended
    lost = Pipe()
    control = ControlChannel(FrameChannel(lost), controlled.session, ME, controlled.redirector)
    serving = asyncio.ensure_future(control.serve())
    await turns()
    assert controlled.session.attended
    lost.abort()
    await turns()
    assert await serving is False
    assert not controlled.session.attended


async def test_a_session_that_failed_says_why(controlled: Controlled) -> None:
    """Before its channel ends; a session that only expired says nothing."""
    controlled.session.fail(RuntimeError("a mistake"))
    controlled.session.close()
    assert await controlled.serving is False
    [told] = controlled.heard
    assert isinstance(told, Refusal)
    assert "this server failed: RuntimeError: a mistake" in told.message


async def test_what_a_control_channel_does_not_carry(controlled: Controlled) -> None:
    """The client's mistake ends its channel."""
    controlled.pipe.arrive(Pong(1, 0.0, 0.0))
    with pytest.raises(ProtocolError, match="does not carry Pong"):
        await controlled.serving
    assert not controlled.session.attended


async def test_orders_without_end_are_read_later(controlled: Controlled) -> None:
    """Beyond what is listened to at once an order waits for its time, and all are obeyed in the end."""
    clock = controlled.hop.clock
    controlled.frames.idle_words = TokenBucket(1.0, 3, clock)
    for number in range(6):
        await controlled.say(Ping(number))
    assert len(controlled.heard) == 4
    for _ in range(3):
        await clock.advance(1.0)
        await turns()
    assert [pong.id for pong in controlled.heard if isinstance(pong, Pong)] == list(range(6))
