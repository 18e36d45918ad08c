"""Whom a session asks for its blocks, in which order, and whom it leaves alone for a while."""

from __future__ import annotations

import itertools

import pytest

from shoal.client.options import SessionOptions
from shoal.client.session.hop_client import HopClient
from shoal.client.session.planner import SessionSpec
from shoal.client.session.server_selector import AVOID_S, ServerSelector
from shoal.errors import DialError, NoRoute, SessionLost, ShoalError, SpanError
from shoal.protocol.messages import Numerics
from shoal.protocol.refusals import refusal, refused
from shoal.protocol.row_stream import Sender
from shoal.swarm.directory.records import ServerRecord, SignedRecord
from shoal.swarm.identity import Identity
from shoal.swarm.routing.route_planner import RouteOptions
from shoal.transport.dialler import Dialler
from shoal.types import Hop, ModelSpec, Span
from tests.records import FINGERPRINT, signed_record
from tests.support.virtual_clock import VirtualClock

MODEL = ModelSpec("tiny", FINGERPRINT, 12, 48)
ALL = Span(0, 12)
ME, SERVER = Identity.generate(), Identity.generate()


class NoServers:
    """A planner that knows nobody, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[RouteOptions] = []
        self.avoided: list[frozenset[str]] = []
        self.failures: list[str] = []

    @property
    def dialler(self) -> Dialler:
        """Planner."""
        return Dialler([])

    def route(
        self, model: ModelSpec, span: Span, options: RouteOptions, avoid: frozenset[str]
    ) -> list[tuple[Hop, SignedRecord]]:
        """Planner."""
        self.asked.append(options)
        self.avoided.append(avoid)
        raise NoRoute("nobody")

    async def refresh(self) -> None:
        """Planner."""

    def failed(self, record: ServerRecord) -> None:
        """Planner."""
        self.failures.append(record.peer)


def recruiter_of(planner: NoServers, clock: VirtualClock, **options: object) -> ServerSelector:
    """What is tested."""
    asked = SessionOptions(max_tokens=100, **options)  # type: ignore[arg-type]  # as they are named
    return ServerSelector(SessionSpec(MODEL, ALL, ME.peer, asked), planner, Sender(), itertools.count(1), clock)


def hop(selector: ServerSelector, numerics: str = "torch") -> HopClient:
    """A hop at the server, as if it had been opened."""
    control = selector.control(Hop(SERVER.peer, ALL), signed_record(SERVER))
    control.numerics, control.weights = Numerics(numerics, "probe", "float32", exact=True), ("w",) * 12
    return control


async def avoided(selector: ServerSelector, planner: NoServers) -> frozenset[str]:
    """Whom the next route would leave out."""
    with pytest.raises(NoRoute):
        await selector.open(ALL, frozenset(), frozenset())
    return planner.avoided[-1]


async def test_wishes_are_given_up_one_after_the_other() -> None:
    """Equal arithmetic is the last to go; before it links that work, then room as far as it is known."""
    planner = NoServers()
    selector = recruiter_of(planner, VirtualClock())
    selector.agree([hop(selector)])
    planner.asked.clear()
    broken = frozenset({("a", "b")})
    with pytest.raises(NoRoute):
        await selector.open(ALL, frozenset(), broken)
    key = hop(selector).numerics.key  # type: ignore[union-attr]  # it was set
    none = frozenset[tuple[str, str]]()
    wishes = [(one.numerics, one.broken_links, one.num_tokens) for one in planner.asked]
    assert wishes == [
        (key, broken, 100), (key, none, 100), (key, none, 0),
        (None, broken, 100), (None, none, 100), (None, none, 0),
    ]  # fmt: skip


async def test_who_wants_exactness_is_given_no_other_arithmetic() -> None:
    """Servers of other numerics are never asked for, and one that turns out to be different is lost."""
    planner = NoServers()
    selector = recruiter_of(planner, VirtualClock(), exact=True)
    selector.agree([hop(selector)])
    with pytest.raises(NoRoute):
        await selector.open(ALL, frozenset(), frozenset())
    assert {one.numerics for one in planner.asked} == {hop(selector).numerics.key}  # type: ignore[union-attr]


@pytest.mark.parametrize("exact", [True, False])
async def test_other_arithmetic_after_the_first_rows(exact: bool) -> None:
    """It is refused, or the session is not exact any more."""
    selector = recruiter_of(NoServers(), VirtualClock(), exact=exact)
    selector.agree([hop(selector)])
    selector._sender.append(1)
    other = hop(selector, "another kernel")
    selector.agree([other])
    assert (other.lost is not None) == exact
    assert selector.exact == exact


async def test_who_is_out_of_reach_is_left_alone_for_a_while() -> None:
    """And the planner hears of it."""
    planner, clock = NoServers(), VirtualClock()
    selector = recruiter_of(planner, clock)
    control = hop(selector)
    control.fail(DialError("gone"))
    selector.lose(control)
    assert planner.failures == [SERVER.peer]
    assert await avoided(selector, planner) == {SERVER.peer}
    await clock.advance(AVOID_S)
    assert await avoided(selector, planner) == frozenset()


async def test_a_session_that_fails_twice_at_a_server() -> None:
    """Once may be the session's own affair; the second time it is opened elsewhere."""
    planner, clock = NoServers(), VirtualClock()
    selector = recruiter_of(planner, clock)
    for expected in (frozenset[str](), frozenset({SERVER.peer})):
        control = hop(selector)
        control.fail(SessionLost("its lease ran out"))
        selector.lose(control)
        assert await avoided(selector, planner) == expected
    assert planner.failures == []
    selector.clear()
    assert await avoided(selector, planner) == frozenset()


@pytest.mark.parametrize(
    ("error", "left_alone", "failed"),
    [
        (SpanError("it holds other blocks"), False, True),
        (ShoalError("no"), True, False),
    ],
)
async def test_who_refuses(error: ShoalError, left_alone: bool, failed: bool) -> None:
    """Who says that it holds other blocks has moved: its next record will tell. Who does not want is left alone."""
    planner = NoServers()
    selector = recruiter_of(planner, VirtualClock())
    selector._refused(hop(selector), refused(refusal(error), SERVER.peer))
    assert bool(planner.failures) == failed
    assert bool(await avoided(selector, planner)) == left_alone
