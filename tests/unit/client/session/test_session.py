"""A session's steps, rewinds and second life, over a route that is the test."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from shoal.client.saved_reply import SavedHop, SavedSession
from shoal.client.session.planner import Planner, SessionSpec
from shoal.client.session.route_state import FailoverEvent
from shoal.client.session.session import Session
from shoal.clock import Clock
from shoal.errors import GrantExceeded, NoRoute, UsageError
from shoal.links.row_log import RowLog
from shoal.links.row_receiver import RowReceiver
from shoal.model.row_tensors import encode_tensor
from shoal.protocol.messages import Attached, HopTrace, ReceivedUpTo, RowsFrame
from shoal.protocol.row_stream import Cursor, Sender
from shoal.types import Span
from tests.support.virtual_clock import VirtualClock
from tests.unit.client.session.hops import EXACT, MODEL, FakePlanner, terms_of

ROWS = torch.arange(5 * 48, dtype=torch.float32).reshape(5, 48)


class RouteHop:
    """A hop that was taken up as `attached` says; None: it is lost."""

    lost: Exception | None = None
    numerics = EXACT

    def __init__(self, name: str, attached: Attached | None = None, clock_offset_s: float = 0.0) -> None:
        self.name = name
        self.hop = name
        self.heartbeat = SimpleNamespace(clock_offset_s=clock_offset_s)
        self.attached = attached
        self.rewinds: list[tuple[int, int]] = []

    async def rewind(self, sender: Sender) -> None:
        """HopClient."""
        self.rewinds.append((sender.epoch, sender.end))

    async def take_up(self, epoch: int, *_: object) -> Attached | None:
        """HopClient."""
        if self.attached is None:
            self.lost = NoRoute("gone")
        return self.attached


class Route:
    """What a session sees of its supervisor; the test lets rows come back."""

    def __init__(
        self,
        terms: SessionSpec,
        planner: Planner,
        ends: tuple[RowLog, RowReceiver],
        clock: Clock,
        on_change: Callable[[], None],
    ) -> None:
        self.terms = terms
        self.log, self.receiver = ends
        self.wake = on_change
        self.hops = [RouteHop("first"), RouteHop("second", clock_offset_s=10.0)]
        self.state = SimpleNamespace(arithmetic=SimpleNamespace(exact=True), failovers=(), failover=None)
        self.stuck: Exception | None = None
        self.steps: list[object] = []
        self.ended: list[bool] = []
        self.opened = False
        self.private = False
        self.known: dict[Any, RouteHop] = {}

    @property
    def everybody(self) -> list[RouteHop]:
        """RouteSupervisor."""
        return self.hops

    def keep_private(self, private: bool) -> None:
        """RouteSupervisor."""
        self.private = private

    def begin_step(self, rows: int) -> None:
        """RouteSupervisor."""
        self.steps.append(rows)

    def end_step(self, done: bool) -> None:
        """RouteSupervisor."""
        self.steps.append(done)

    def progressed(self) -> None:
        """RouteSupervisor."""
        self.steps.append("progressed")

    async def open(self, patience_s: float) -> None:
        """RouteSupervisor."""
        self.opened = True

    async def close(self, end: bool) -> None:
        """RouteSupervisor."""
        self.ended.append(end)

    def client(self, hop: str, *_: object) -> RouteHop:
        """RouteSupervisor."""
        return self.known[hop]

    def adopt(self, clients: list[RouteHop], exact: bool) -> None:
        """RouteSupervisor."""
        self.hops = clients

    def give(self, rows: torch.Tensor, position: int, elided: int = 0, trace: tuple[HopTrace, ...] = ()) -> None:
        """Outputs arrive, the first `elided` rows of them left out."""
        epoch, count = self.log.sender.epoch, rows.shape[0]
        frame = RowsFrame(epoch, position, count, epoch, elided=elided, trace=trace)
        self.receiver.on_frame(frame, encode_tensor(rows[elided:], "fp32"))


class Opened:
    """A session, its route, and a clock that stands still."""

    def __init__(self, **options: object) -> None:
        self.clock = VirtualClock()
        self.session = Session(terms_of(**options), FakePlanner([]), self.clock)
        assert isinstance(self.session.supervisor, Route)
        self.route: Route = self.session.supervisor

    async def begin(self, rows: torch.Tensor, **more: Any) -> asyncio.Task[torch.Tensor]:
        """A step that waits for its outputs."""
        task = asyncio.create_task(self.session.step(rows, **more))
        await asyncio.sleep(0)
        return task

    async def feed(self, rows: torch.Tensor) -> None:
        """A whole step whose outputs are its rows."""
        step = await self.begin(rows)
        self.route.give(rows, self.session.position - rows.shape[0])
        await step


@pytest.fixture(autouse=True)
def _route(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal.client.session.session.RouteSupervisor", Route)


async def test_a_step_waits_for_its_last_row() -> None:
    """Outputs come in frames; the form is that of the rows."""
    opened = Opened()
    step = await opened.begin(ROWS.unsqueeze(0))
    opened.route.give(ROWS[:3] * 2, 0)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not step.done()
    opened.route.give(ROWS[3:] * 2, 3)
    assert torch.equal(await step, ROWS.unsqueeze(0) * 2)
    assert opened.session.position == 5
    assert opened.route.steps == [5, "progressed", "progressed", True]
    assert opened.session.exact


async def test_only_the_rows_asked_for_come_back() -> None:
    """The hops are told from which position on outputs are needed, and leave out the others."""
    opened = Opened(prefill_chunk_rows=2)
    step = await opened.begin(ROWS, reply=1)
    cursor = Cursor(opened.route.log.sender)
    cursor.on_have(ReceivedUpTo(0, 0))
    cursor.answer()
    frames = [frame for _ in range(3) if (frame := opened.route.log.journal.next_frame(cursor)) is not None]
    assert [(frame.position, frame.count, frame.reply) for frame, _ in frames] == [(0, 2, 0), (2, 2, 0), (4, 1, -1)]
    opened.route.give(ROWS, 0, elided=4)
    assert torch.equal(await step, ROWS[4:])


@pytest.mark.parametrize(
    ("value", "codec", "says"),
    [
        (float("nan"), "fp32", "row 3 of the step's 5"),
        (float("inf"), "bf16", "not finite"),
        (-float("inf"), "fp16", "not finite"),
        (1e6, "fp16", "too large to travel as fp16"),
    ],
)
async def test_numbers_that_nobody_can_compute_with_are_the_callers(value: float, codec: str, says: str) -> None:
    """They are named here, at once, and nothing was sent."""
    opened = Opened(row_codec=codec, prefill_chunk_rows=2)
    rows = ROWS.clone()
    rows[3, 7] = value
    with pytest.raises(UsageError, match=says) as caught:
        await opened.session.step(rows)
    assert caught.value.field == "hidden_states"
    assert opened.session.position == 0
    assert opened.route.steps == []


async def test_a_session_is_private_until_it_is_saved() -> None:
    """After that another process may have it; what was resumed was saved."""
    opened = Opened()
    assert opened.route.private
    opened.route.hops = []
    opened.session.save()
    assert not opened.route.private


@pytest.mark.parametrize("shape", [(48,), (0, 48), (1, 47), (2, 1, 48), (1, 1, 1, 48)])
async def test_a_wrong_shape_is_refused(shape: tuple[int, ...]) -> None:
    """Before anything is sent."""
    opened = Opened()
    with pytest.raises(UsageError, match="a step takes"):
        await opened.session.step(torch.zeros(shape))
    assert opened.route.steps == []


@pytest.mark.parametrize("reply", [0, 6, -1])
async def test_rows_back_that_do_not_go_out(reply: int) -> None:
    """A step gives from one row to all of its own."""
    with pytest.raises(UsageError, match="reply must be"):
        await Opened().session.step(ROWS, reply=reply)


async def test_more_rows_than_there_is_room_for() -> None:
    """The grant is for 100 tokens, and counts what is there."""
    opened = Opened()
    await opened.feed(ROWS)
    with pytest.raises(GrantExceeded, match="101 tokens are more than the 100"):
        await opened.session.step(torch.zeros(96, 48))
    assert opened.session.position == 5


async def test_a_cancelled_step_takes_its_rows_back() -> None:
    """At every hop, in a new epoch; the next step begins where it did."""
    opened = Opened()
    await opened.feed(ROWS[:2])
    step = await opened.begin(ROWS)
    step.cancel()
    with pytest.raises(asyncio.CancelledError):
        await step
    assert opened.session.position == 2
    assert [hop.rewinds for hop in opened.route.hops] == [[(1, 2)], [(1, 2)]]
    assert opened.route.steps[-1] is False
    await opened.feed(ROWS[2:])
    assert opened.session.position == 5


async def test_a_step_ends_when_the_route_is_stuck() -> None:
    """With the route's error; it may be tried again."""
    opened = Opened()
    step = await opened.begin(ROWS)
    opened.route.stuck = NoRoute("blocks 0:6 have no server")
    opened.route.wake()
    with pytest.raises(NoRoute, match="0:6"):
        await step
    assert opened.session.position == 0
    opened.route.stuck = None
    await opened.feed(ROWS)


async def test_one_step_at_a_time() -> None:
    """A second one begins when the first has its outputs."""
    opened = Opened()
    first, second = await opened.begin(ROWS[:2]), await opened.begin(ROWS[2:])
    assert opened.session.position == 2
    opened.route.give(ROWS[:2], 0)
    await first
    await opened.clock.settle()
    opened.route.give(ROWS[2:], 2)
    assert torch.equal(await second, ROWS[2:])


async def test_rewinding() -> None:
    """Beyond the stream it is a mistake, to its end it is nothing."""
    opened = Opened()
    await opened.feed(ROWS)
    await opened.session.rewind(5)
    assert opened.route.hops[0].rewinds == []
    await opened.session.rewind(1)
    assert opened.session.position == 1
    assert opened.route.hops[0].rewinds == [(1, 1)]
    for position in (-1, 2):
        with pytest.raises(UsageError, match=f"rewind to {position}: the session has 1 rows"):
            await opened.session.rewind(position)
    for given in ("1", None, 0.5):
        with pytest.raises(UsageError, match="a position is a whole number"):
            await opened.session.rewind(given)  # type: ignore[arg-type]  # what people pass
    await opened.session.rewind(np.int64(0))  # type: ignore[arg-type]
    assert opened.session.position == 0


async def test_where_a_steps_time_went() -> None:
    """On the client's clock; a frame of another route says nothing."""
    opened = Opened()
    step = await opened.begin(ROWS[:1])
    sent_at = opened.clock.wall()
    await opened.clock.advance(4.0)
    trace = (HopTrace(sent_at + 1.0, 0.0, 0.5), HopTrace(sent_at + 12.0, 0.5, 1.0))
    opened.route.give(ROWS[:1], 0, trace=trace)
    await step
    found = opened.session.last_trace
    assert found is not None
    assert [(hop.name, hop.network_s, hop.compute_s) for hop in found.hops] == [
        ("first", 1.0, 0.5),
        ("second", 0.5, 1.0),
    ]
    assert (found.total_s, found.return_s) == (4.0, 0.5)
    step = await opened.begin(ROWS[1:2])
    opened.route.give(ROWS[1:2], 1, trace=trace[:1])
    await step
    assert opened.session.last_trace is None


async def test_what_is_waited_for() -> None:
    """The blocks without a server, or else why a server is replaced."""
    opened = Opened()
    assert opened.session.waiting == ""
    opened.route.state.failover = FailoverEvent("first is gone", 1.0)
    assert opened.session.waiting == "first is gone"
    opened.route.state.failover = FailoverEvent("first is gone", 1.0, missing="0:6")
    assert opened.session.waiting == "0:6"
    assert opened.session.hop_names == ("first", "second")
    assert opened.session.numerics == (EXACT, EXACT)


async def test_a_closed_session_takes_no_step() -> None:
    """Leaving `async with` ends it at every hop; closing twice is harmless."""
    opened = Opened()
    async with opened.session:
        pass
    await opened.session.close()
    with pytest.raises(UsageError, match="closed"):
        await opened.session.step(ROWS)
    assert opened.route.ended == [True, True]


class FakeSavedHop(SavedHop, frozen=True):
    """A saved hop whose record nobody signed."""

    def parts(self) -> Any:
        """SavedHop: the hop's name instead of what a channel needs."""
        return (self.record.decode(),)


def saved(position: int, epoch: int, *names: str) -> SavedSession:
    """A session over these hops."""
    hops = tuple(FakeSavedHop(name.encode(), Span(0, 12), None, EXACT, ()) for name in names)  # type: ignore[arg-type]
    return SavedSession(MODEL, Span(0, 12), terms_of().options, 1, position, epoch, True, hops)


@pytest.mark.parametrize(
    ("hops", "epoch", "base"),
    [
        ([RouteHop("a", Attached(3, 4)), RouteHop("b", Attached(3, 4))], 4, 4),  # all is as it was saved
        ([RouteHop("a", Attached(5, 6, 2)), RouteHop("b", Attached(4, 5))], 6, 2),  # the old process had gone on
        ([RouteHop("a", Attached(3, 4)), RouteHop("b", Attached(2, 4))], 4, 0),  # a hop missed a rewind
        ([RouteHop("a", None), RouteHop("b", Attached(3, 4))], 4, 4),  # one is gone
        ([RouteHop("a", None)], 4, 4),  # all are
    ],
)
async def test_a_saved_session_goes_on(hops: list[RouteHop], epoch: int, base: int) -> None:
    """In an epoch that no hop has seen, from where all of them surely have the same rows."""
    opened = Opened()
    opened.route.known = {hop.name: hop for hop in hops}
    await opened.session.resume(saved(4, 3, *(hop.name for hop in hops)), ROWS[:4], 0.0)
    assert opened.route.opened
    assert opened.session.position == 4
    sender = opened.route.log.sender
    assert (sender.epoch, sender.least(epoch - 1)) == (epoch, base)
    assert [hop.rewinds for hop in hops] == [[] if hop.attached is None else [(epoch, 4)] for hop in hops]
    receiver = opened.route.receiver.receiver
    assert (receiver.epoch, receiver.position) == (epoch, 4)  # its rows are not wanted again
    opened.route.hops = []
    await opened.feed(ROWS[4:])
    assert opened.session.position == 5


async def test_left_for_a_later_process() -> None:
    """What is saved says how far it is; its hops keep it."""
    opened = Opened()
    await opened.feed(ROWS)
    await opened.session.rewind(3)
    opened.route.hops = []
    kept = opened.session.save()
    assert (kept.position, kept.epoch, kept.exact, kept.resumed, kept.hops) == (3, 1, True, 0, ())
    await opened.session.close(end=False)
    assert opened.route.ended == [False]
