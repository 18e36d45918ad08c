"""Who keeps rows back, as the client sees it at its own ends of a link."""

from __future__ import annotations

from shoal.client.session.hop_client import DIAL_S
from shoal.client.session.link_watch import LinkWatch
from shoal.links.link import LinkKey
from shoal.protocol.journal import FRAME_ROWS
from shoal.protocol.messages import Pong
from shoal.protocol.row_stream import Receiver
from shoal.types import Span
from tests.support.virtual_clock import VirtualClock
from tests.unit.client.session.hops import FakeHop

ONE, TWO = FakeHop(Span(0, 6)), FakeHop(Span(6, 12))


async def test_the_client_s_own_links() -> None:
    """The hop at the other end, since the client has a channel to it, or should have one."""
    clock = VirtualClock()
    into, out = (LinkWatch(key, Receiver(), clock) for key in (LinkKey(None, ONE), LinkKey(TWO, None)))
    assert out.suspect() == (TWO, DIAL_S)
    await clock.advance(0.5)
    out.attached("receive")
    assert out.suspect() == (TWO, 0.5)
    assert into.suspect()[0] is ONE  # type: ignore[index]


async def test_rows_that_come_are_seen() -> None:
    """A frame of them: what was quiet before it is forgotten. Another channel instead of the first changes nothing."""
    clock, receiver = VirtualClock(), Receiver()
    watch = LinkWatch(LinkKey(TWO, None), receiver, clock)
    watch.attached("receive")
    await clock.advance(1.0)
    watch.attached("receive")
    assert watch.suspect() == (TWO, 0.0)
    receiver.position = FRAME_ROWS - 1
    assert watch.suspect() == (TWO, 0.0)
    receiver.position = FRAME_ROWS
    assert watch.suspect() == (TWO, 1.0)


async def test_a_link_that_the_client_carries() -> None:
    """The sender, while the receiver lacks nothing that came; then the receiver, until it says that it has it."""
    clock, receiver = VirtualClock(), Receiver(0, 4)
    two = FakeHop(Span(6, 12), clock)
    two.heartbeat.hear(Pong(0, 0.0, 0.0, 0, 4, 4))
    watch = LinkWatch(LinkKey(ONE, two), receiver, clock)
    watch.attached("receive")
    watch.attached("send")
    await clock.advance(1.0)
    assert watch.suspect() == (ONE, 0.0)
    receiver.position = 5
    assert watch.suspect() == (two, 1.0)
    await clock.advance(1.0)
    two.heartbeat.hear(Pong(0, 0.0, 0.0, 0, 5, 4))
    assert watch.suspect() == (ONE, 0.0)


async def test_rows_that_trickle_through_a_link_that_the_client_carries() -> None:
    """Their sender stays the suspect, and the receiver is none because it takes each of them a moment later."""
    clock, receiver = VirtualClock(), Receiver()
    two = FakeHop(Span(6, 12), clock)
    watch = LinkWatch(LinkKey(ONE, two), receiver, clock)
    watch.attached("receive")
    watch.attached("send")
    for row in range(1, 20):
        await clock.advance(0.25)
        receiver.position = row
        assert watch.suspect() == (two, clock.monotonic())
        two.heartbeat.hear(Pong(0, 0.0, 0.0, 0, row, row))
        assert watch.suspect() == (ONE, 0.0)


async def test_rows_that_are_sipped_from_a_link_that_the_client_carries() -> None:
    """Their receiver is the suspect, although it says that it has one more each time."""
    clock, receiver = VirtualClock(), Receiver(0, 40)
    two = FakeHop(Span(6, 12), clock)
    watch = LinkWatch(LinkKey(ONE, two), receiver, clock)
    watch.attached("receive")
    watch.attached("send")
    for row in range(1, 20):
        await clock.advance(0.25)
        two.heartbeat.hear(Pong(0, 0.0, 0.0, 0, row, row))
        assert watch.suspect() == (two, 0.25)
