"""A hop's outgoing links: whom it dials, how often, and what the client hears of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from shoal.errors import DialError, IdentityError, RecordError, ShoalError
from shoal.protocol.messages import Attach, LinkGrant, LinkState, ReceivedUpTo, Redirect
from shoal.server.sessions.dial_limits import FAILED_AT_ONCE
from shoal.server.sessions.redirector import FAILED_DIAL_S, Redirector
from shoal.swarm.directory.records import Acceptance, sign_acceptance
from shoal.swarm.identity import Identity
from shoal.transport.channel import Channel
from shoal.transport.dialler import Dialler
from shoal.transport.frame_channel import FrameChannel
from shoal.types import PeerId
from tests.records import signed_record
from tests.unit.links.test_row_sender import messages
from tests.unit.server.sessions.test_hop_session import CLIENT, Hop
from tests.unit.transport.pipe import Pipe, turns

ME, TARGET = Identity.generate(), Identity.generate()
THEIR_SESSION = b"x" * 16


class Dials(Dialler):
    """Gives out pipes, or fails."""

    def __init__(self) -> None:
        super().__init__([])
        self.pipes: list[Pipe] = []
        self.error: ShoalError | None = None
        self.count = 0
        self.tried: list[object] = []

    async def dial(self, peer: PeerId, addresses: object, deadline_s: float = 0.0) -> Channel:
        """Dialler."""
        self.count += 1
        self.tried.append(addresses)
        if self.error is not None:
            raise self.error
        self.pipes.append(Pipe())
        return self.pipes[-1]


class Ordered:
    """A session whose client gives orders."""

    def __init__(self, own: str = "tls://127.0.0.1:9") -> None:
        self.hop = Hop()
        self.hop.clock._wall = time.time() - self.hop.clock.monotonic()
        self.dials = Dials()
        self.redirector = Redirector(ME, self.dials, self.hop.clock, lambda: (own,))
        self.session = self.hop.session
        self.session.take_up(0, CLIENT)
        self.news = self.session.attend(FrameChannel(Pipe()))

    def order(self, generation: int = 1, follow: bool = False, **changes: object) -> Redirect:
        """Go on to the target, which has agreed."""
        agreed = Acceptance(THEIR_SESSION, TARGET.peer, ME.peer, generation, self.hop.clock.wall() + 60)
        fields: dict[str, object] = {
            "link": LinkGrant(generation, TARGET.peer, b"t" * 16),
            "record": signed_record(TARGET).data,
            "acceptance": sign_acceptance(agreed, TARGET),
            "follow": follow,
            **changes,
        }
        return Redirect(**fields)  # type: ignore[arg-type]

    def told(self) -> list[LinkState]:
        """What the client hears of its links."""
        states = []
        while not self.news.empty():
            news = self.news.get_nowait()
            assert isinstance(news, LinkState)
            states.append(news)
        return states


@pytest_asyncio.fixture
async def ordered() -> AsyncIterator[Ordered]:
    """With a redirector that is open."""
    made = Ordered()
    async with made.redirector:
        yield made


async def test_the_target_is_dialled_and_fed(ordered: Ordered) -> None:
    """Under its own name for the session, with the client's token; rows follow as soon as it says what it has."""
    ordered.redirector.redirect(ordered.session, ordered.order(7))
    await turns()
    (pipe,) = ordered.dials.pipes
    pipe.arrive(ReceivedUpTo(0, 0))
    await ordered.hop.feed()
    ordered.hop.rows(0)
    ordered.hop.compute_one()
    attach, _, rows = messages(pipe)
    assert attach == Attach("send", THEIR_SESSION, 0, b"t" * 16, 7)
    assert rows.position == 0  # type: ignore[attr-defined]
    assert [(state.generation, state.state) for state in ordered.told()] == [(7, "ready"), (7, "up")]


async def test_a_newer_order_replaces_the_link(ordered: Ordered) -> None:
    """The old channel is dropped and not dialled again; an older generation is refused; a follower's link is beside it."""
    for generation, follow in ((2, False), (3, False), (4, True)):
        ordered.redirector.redirect(ordered.session, ordered.order(generation, follow))
        await turns()
    assert [pipe.ended for pipe in ordered.dials.pipes] == [True, False, False]
    with pytest.raises(RecordError, match="older"):
        ordered.redirector.redirect(ordered.session, ordered.order(1))
    await ordered.hop.clock.advance(10.0)
    assert ordered.dials.count == 3


async def test_a_link_that_breaks_is_dialled_again(ordered: Ordered) -> None:
    """And the client is told of both."""
    ordered.redirector.redirect(ordered.session, ordered.order())
    await turns()
    ordered.dials.pipes[0].abort()
    await ordered.hop.clock.advance(0.2)
    assert [state.state for state in ordered.told()] == ["ready", "up", "down", "up"]


async def test_the_client_itself_is_not_dialled(ordered: Ordered) -> None:
    """It comes by itself, and takes only the rows that it needs."""
    link = LinkGrant(1, CLIENT, b"t" * 16)
    ordered.redirector.redirect(ordered.session, Redirect(link, elide=True))
    await turns()
    assert ordered.dials.count == 0
    assert ordered.session.outgoing[False].elide
    assert not ordered.session.outgoing[False].link.tasks


async def test_dials_that_are_not_answered_are_limited(ordered: Ordered) -> None:
    """However many links a client orders; it learns of this server's limit at once."""
    ordered.dials.error = DialError("127.0.0.1:22 does not answer: connection refused")
    told: list[str] = []
    for generation in range(1, FAILED_AT_ONCE + 20):
        ordered.redirector.redirect(ordered.session, ordered.order(generation), "192.0.2.1")
        for _ in range(3):
            await asyncio.sleep(0)
        told += [state.detail for state in ordered.told() if state.state == "down"]
    assert ordered.dials.count == FAILED_AT_ONCE
    assert len(told) == 19
    assert all("dials" in detail for detail in told)
    await ordered.hop.clock.advance(3.0)
    assert ordered.dials.count > FAILED_AT_ONCE


@pytest.mark.parametrize("error", [DialError("127.0.0.1:22 does not answer: connection refused"), IdentityError("no")])
async def test_a_dial_that_fails_tells_no_cause(ordered: Ordered, error: ShoalError) -> None:
    """Neither in words nor by the time that it took: both would be a scan's answer."""
    ordered.dials.error = error
    ordered.redirector.redirect(ordered.session, ordered.order())
    await ordered.hop.clock.advance(FAILED_DIAL_S - 0.01)
    assert [state.state for state in ordered.told()] == ["ready"]
    await ordered.hop.clock.advance(0.02)
    assert [(state.state, state.detail) for state in ordered.told()] == [("down", "")]


@pytest.mark.parametrize(
    ("own", "addresses", "dialled"),
    [
        (
            "tls://203.0.113.1:1",
            ("tls://127.0.0.1:22", "tls://203.0.113.9:1", "tls://[::1]:1"),
            ("tls://203.0.113.9:1",),
        ),
        ("tls://203.0.113.1:1", ("tls://127.0.0.1:22",), ()),
        ("tls://127.0.0.1:1", ("tls://127.0.0.1:22",), ("tls://127.0.0.1:22",)),
    ],
)
async def test_a_server_dials_for_others_where_it_serves(own: str, addresses: tuple[str, ...], dialled: object) -> None:
    """Its own machine is nothing that a client may have it look at from outside."""
    ordered = Ordered(own)
    async with ordered.redirector:
        ordered.redirector.redirect(ordered.session, ordered.order(record=signed_record(TARGET, addresses).data))
        await turns()
        assert ordered.dials.tried == ([dialled] if dialled else [])
        state = "up" if dialled else "down"
        assert [(state.state, state.detail) for state in ordered.told()] == [("ready", ""), (state, "")]
