"""The compute thread: batching, rewinding, closing and failing while a step is under way."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence

import pytest
import torch

from shoal.engine.batch_queue import BatchQueue, Limits
from shoal.engine.compute_thread import ComputeThread
from shoal.errors import ProtocolError, ServerFull, ShoalError
from shoal.protocol.messages import HopTrace, RowsFrame
from shoal.protocol.rows import Rows
from shoal.types import Span

SPAN = Span(0, 1)


class FakeRunner:
    """Doubles rows, remembers batches, and waits at a gate before each step."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.started = threading.Event()
        self.batches: list[list[tuple[str, int, int]]] = []
        self.lengths: dict[str, int] = {}
        self.poison = -1.0
        self.found_rows = 0
        self.any_thread = False
        self.threads: list[str] = []

    def open(self, session: str, span: Span, max_tokens: int, client: str) -> None:
        """Room for three sessions."""
        if session in self.lengths:
            raise ValueError(f"session {session} is open already")
        if len(self.lengths) == 3:
            raise ServerFull("three are enough", retry_after=1)
        self.lengths[session] = 0

    def truncate(self, session: str, num_tokens: int) -> None:
        """Forget."""
        self.lengths[session] = min(self.lengths[session], num_tokens)

    def close(self, session: str) -> None:
        """Forget all."""
        self.lengths.pop(session, None)

    def step(self, batch: Sequence[Rows], pauses: Mapping[str, int]) -> list[torch.Tensor]:
        """Wait for the gate, then double; a poisoned number fails the whole step."""
        self.threads.append(threading.current_thread().name)
        self.started.set()
        assert self.gate.wait(10)
        if any((rows.hidden_states == self.poison).any() for rows in batch):
            raise RuntimeError("poisoned")
        for rows in batch:
            assert self.lengths[rows.session] == rows.position
            self.lengths[rows.session] += rows.hidden_states.shape[0]
        self.batches.append([(rows.session, rows.position, rows.hidden_states.shape[0]) for rows in batch])
        return [2 * rows.hidden_states for rows in batch]


class Output:
    """Rows that were computed: `tag` says of which submission."""

    def __init__(self, rows: Rows, trace: HopTrace) -> None:
        self.session = rows.session
        self.position = rows.position
        self.hidden_states = rows.hidden_states
        self.tag = rows.frame.epoch if rows.frame is not None else None
        self.trace = trace


class Desk:
    """A compute thread with its fake runner, and what it handed over."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.runner = FakeRunner()
        self.time_s = 0.0
        self.queue = BatchQueue(limits)
        self.compute = ComputeThread(self.runner, self.queue, lambda: self.time_s)
        self.outputs: list[Output] = []
        self.failures: list[str] = []

    async def open(self, *sessions: str) -> None:
        """Open sessions."""
        for session in sessions:
            await self.compute.open(session, session, SPAN, 99, self.keep, lambda e, s=session: self.failures.append(s))

    def keep(self, rows: Rows, trace: HopTrace) -> None:
        """An owner that takes everything."""
        self.outputs.append(Output(rows, trace))

    def submit(self, session: str, position: int, hidden_states: torch.Tensor, tag: int | None = None) -> None:
        """Submit rows of a frame that the tests tell from others by its epoch, `tag`."""
        frame = None if tag is None else RowsFrame(tag, position, len(hidden_states), 0)
        self.compute.submit(Rows(session, position, hidden_states, frame))

    async def busy(self, session: str) -> None:
        """Get the thread into a step of this session's first row."""
        self.submit(session, 0, rows(0, 1), 1)
        await asyncio.to_thread(self.runner.started.wait, 10)

    async def in_flight(self, session: str, position: int, hidden_states: torch.Tensor) -> None:
        """Get the thread into a step of these rows and no others."""
        self.runner.gate.clear()
        self.runner.started.clear()
        self.submit(session, position, hidden_states)
        await asyncio.to_thread(self.runner.started.wait, 10)

    async def settle(self) -> None:
        """Let the thread finish all that is queued."""
        self.runner.gate.set()
        while self.compute.queued_rows:
            await self.compute.between_steps(lambda: None)
        await self.compute.between_steps(lambda: None)
        await asyncio.sleep(0)

    def got(self, session: str) -> list[float]:
        """What a session's outputs hold, in order."""
        return [
            value
            for output in self.outputs
            if output.session == session
            for value in output.hidden_states[:, 0].tolist()
        ]


def rows(first: int, count: int) -> torch.Tensor:
    """Rows that hold their positions."""
    return torch.arange(first, first + count, dtype=torch.float32)[:, None]


async def test_rows_that_wait_together_share_a_step() -> None:
    """Two sessions submitted while a step is under way are one batch."""
    desk = Desk()
    async with desk.compute:
        await desk.open("a", "b")
        await desk.busy("a")
        desk.submit("a", 1, rows(1, 2), 2)
        desk.submit("b", 0, rows(0, 3), 3)
        await desk.settle()
    assert desk.runner.batches == [[("a", 0, 1)], [("a", 1, 2), ("b", 0, 3)]]
    assert [(output.session, output.tag, output.trace.batch_sessions) for output in desk.outputs] == [
        ("a", 1, 1),
        ("a", 2, 2),
        ("b", 3, 2),
    ]
    assert desk.got("a") == [0, 2, 4]


async def test_a_large_chunk_comes_in_pieces_of_its_own_tag() -> None:
    """Steps that cut or join chunks hand over outputs that belong to one chunk each."""
    desk = Desk(Limits(prefill_chunk_rows=4, max_step_rows=4))
    async with desk.compute:
        await desk.open("a")
        await desk.busy("a")
        desk.submit("a", 1, rows(1, 6), 4)
        desk.submit("a", 7, rows(7, 3), 5)
        await desk.settle()
    assert desk.got("a") == [2.0 * position for position in range(10)]
    assert [(output.tag, output.position, len(output.hidden_states)) for output in desk.outputs] == [
        (1, 0, 1),
        (4, 1, 4),
        (4, 5, 2),
        (5, 7, 2),
        (5, 9, 1),
    ]


async def test_a_rewind_during_a_step() -> None:
    """Rows below the position are delivered, those above are not, and new ones follow."""
    desk = Desk()
    async with desk.compute:
        await desk.open("a")
        await desk.busy("a")
        desk.submit("a", 1, rows(1, 5), 6)
        desk.compute.rewind("a", 4)
        desk.submit("a", 4, rows(40, 2), 7)
        await desk.settle()
        assert desk.runner.lengths["a"] == 6
        await desk.in_flight("a", 6, rows(6, 4))
        desk.compute.rewind("a", 7)
        desk.submit("a", 7, rows(70, 1), 8)
        await desk.settle()
        await desk.in_flight("a", 8, rows(8, 2))
        desk.compute.rewind("a", 8)
        await desk.settle()
    assert desk.got("a") == [0, 2, 4, 6, 80, 82, 12, 140]
    assert all(len(output.hidden_states) for output in desk.outputs)


async def test_a_close_during_a_step() -> None:
    """Nothing of a closed session is delivered, its cache is freed, and closing again is harmless."""
    desk = Desk()
    async with desk.compute:
        await desk.open("a", "b")
        await desk.busy("a")
        desk.submit("b", 0, rows(0, 2), 9)
        closing = asyncio.ensure_future(desk.compute.close("a"))
        await asyncio.sleep(0)
        await desk.settle()
        await closing
        await desk.compute.close("a")
        assert [output.session for output in desk.outputs] == ["b"]
        assert desk.got("b") == [0, 2]
        assert list(desk.runner.lengths) == ["b"]
        with pytest.raises(ProtocolError):
            desk.submit("a", 1, rows(1, 1))


async def test_only_whoever_is_at_fault_fails() -> None:
    """A step that fails is tried again session by session."""
    desk = Desk()
    async with desk.compute:
        await desk.open("a", "b", "c")
        await desk.busy("a")
        desk.submit("a", 1, rows(1, 1), 10)
        desk.submit("b", 0, rows(-1, 1), 11)
        desk.submit("c", 0, rows(5, 1), 10)
        await desk.settle()
    assert desk.failures == ["b"]
    assert desk.got("a") == [0, 2]
    assert desk.got("b") == []
    assert desk.got("c") == [10]


async def test_what_cannot_be_is_refused() -> None:
    """Gaps, a full cache, and everything after the end."""
    desk = Desk()
    async with desk.compute:
        await desk.open("a", "b", "c")
        with pytest.raises(ServerFull):
            await desk.open("d")
        with pytest.raises(ProtocolError):
            desk.submit("a", 1, rows(1, 1))
        with pytest.raises(ValueError, match="0 rows"):
            desk.submit("a", 0, rows(0, 0))
        with pytest.raises(ValueError, match="open already"):
            await desk.open("a")
    assert not any(thread.name == "shoal-compute" for thread in threading.enumerate())


async def test_a_session_that_fails_is_closed() -> None:
    """Its pages are free at once, later rows are refused, closing it is harmless, and its name can be used again."""
    desk = Desk()
    async with desk.compute:
        await desk.open("a")
        await desk.in_flight("a", 0, rows(-1, 1))
        desk.submit("a", 1, rows(1, 5))
        await desk.settle()
        assert desk.failures == ["a"]
        assert desk.runner.lengths == {}
        assert desk.compute.queued_rows == 0
        with pytest.raises(ProtocolError):
            desk.submit("a", 6, rows(6, 1))
        await desk.compute.close("a")
        await desk.open("a")
        desk.submit("a", 0, rows(3, 1))
        await desk.settle()
        assert desk.got("a") == [6]


async def test_rows_that_were_taken_back_are_nobodys_failure() -> None:
    """A rewind below poisoned rows in flight saves the session; a close is not followed by a failure."""
    desk = Desk()
    async with desk.compute:
        await desk.open("a", "b")
        await desk.in_flight("a", 0, rows(-1, 1))
        desk.compute.rewind("a", 0)
        desk.submit("a", 0, rows(5, 1))
        await desk.settle()
        await desk.in_flight("b", 0, rows(-1, 1))
        closing = asyncio.ensure_future(desk.compute.close("b"))
        await asyncio.sleep(0)
        await desk.settle()
        await closing
    assert desk.failures == []
    assert desk.got("a") == [10]


async def test_an_open_that_is_cancelled_leaves_nothing() -> None:
    """The room that it was about to get is free again."""
    desk = Desk()
    async with desk.compute:
        await desk.open("a")
        await desk.busy("a")
        opening = asyncio.ensure_future(desk.open("b"))
        await asyncio.sleep(0)
        opening.cancel()
        await asyncio.wait([opening])
        await desk.settle()
        assert list(desk.runner.lengths) == ["a"]
        await desk.open("b")


async def test_an_output_that_its_owner_cannot_take_fails_that_session_alone() -> None:
    """The others get theirs, in the same wake-up too."""
    desk = Desk()

    def refuse(rows: Rows, trace: HopTrace) -> None:
        raise OverflowError("too large")

    async with desk.compute:
        await desk.open("b")
        await desk.compute.open("a", "a", SPAN, 9, refuse, lambda error: desk.failures.append(str(error)))
        await desk.compute.between_steps(lambda: None)
        desk.submit("a", 0, rows(0, 3))
        desk.submit("b", 0, rows(0, 3))
        await desk.settle()
        assert desk.failures == ["too large"]
        assert desk.got("b") == [0, 2, 4]
        await desk.settle()
        assert list(desk.runner.lengths) == ["b"]


async def test_a_cache_that_cannot_be_truncated_fails_its_session() -> None:
    """The thread goes on."""
    desk = Desk()
    async with desk.compute:
        await desk.open("a", "b")
        del desk.runner.lengths["a"]
        desk.compute.rewind("a", 0)
        desk.submit("b", 0, rows(0, 1))
        await desk.settle()
    assert desk.failures == ["a"]
    assert desk.got("b") == [0]


async def test_a_failure_after_a_close_is_nobodys() -> None:
    """A truncation that fails when its session's owner has gone stops neither the thread nor the name's next session."""
    desk = Desk()
    async with desk.compute:
        await desk.open("a", "b")
        await desk.busy("b")
        del desk.runner.lengths["a"]
        desk.compute.rewind("a", 0)
        closing = asyncio.ensure_future(desk.compute.close("a"))
        await asyncio.sleep(0)
        await desk.settle()
        await closing
        await desk.open("a")
        desk.submit("a", 0, rows(3, 1))
        await desk.settle()
    assert desk.failures == []
    assert desk.got("a") == [6]


async def test_an_owner_that_cannot_take_its_failure_keeps_nothing_from_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The mistake is in the log, and the next output of the same wake-up arrives."""
    desk = Desk()

    def refuse(error: Exception) -> None:
        raise OverflowError("too bad")

    async with desk.compute:
        await desk.compute.open("a", "a", SPAN, 9, desk.keep, refuse)
        await desk.open("b", "c")
        await desk.busy("c")
        desk.submit("a", 0, rows(-1, 1))
        desk.submit("b", 0, rows(0, 3))
        await desk.settle()
    assert "too bad" in caplog.text
    assert desk.got("b") == [0, 2, 4]


async def test_the_threads_end_is_not_silent() -> None:
    """Something fatal reaches every session's owner and whoever waits; later calls are refused."""
    desk = Desk()

    def fatal(batch: Sequence[Rows], pauses: Mapping[str, int]) -> list[torch.Tensor]:
        desk.runner.started.set()
        assert desk.runner.gate.wait(10)
        raise KeyboardInterrupt

    desk.runner.step = fatal  # type: ignore[method-assign]
    async with desk.compute:
        await desk.open("a", "b")
        await desk.busy("a")
        waiting = asyncio.ensure_future(desk.open("c"))
        await asyncio.sleep(0)
        desk.runner.gate.set()
        with pytest.raises(ShoalError, match="KeyboardInterrupt"):
            await waiting
        assert desk.failures == ["a", "b"]
        assert isinstance(desk.compute.failure, KeyboardInterrupt)
        with pytest.raises(ShoalError, match="stopped"):
            desk.submit("a", 1, rows(1, 1))
        with pytest.raises(ServerFull, match="computes no more"):  # not what ends a session that looks for a server
            await desk.open("d")
        desk.compute.rewind("a", 0)
        await desk.compute.close("a")


async def test_an_order_that_kills_the_thread_is_answered() -> None:
    """Its caller does not wait for ever."""
    desk = Desk()

    def fatal() -> None:
        raise SystemExit

    async with desk.compute:
        with pytest.raises(ShoalError, match="SystemExit"):
            await desk.compute.between_steps(fatal)


async def test_the_queue_is_bounded() -> None:
    """Rows beyond the bound are refused, and nothing of them is kept."""
    desk = Desk(Limits(max_queued_rows=4))
    async with desk.compute:
        await desk.open("a")
        await desk.busy("a")
        desk.submit("a", 1, rows(1, 4))
        with pytest.raises(ServerFull):
            desk.submit("a", 5, rows(5, 1))
        desk.compute.rewind("a", 3)
        desk.submit("a", 3, rows(3, 2))
        await desk.settle()
    assert desk.got("a") == [0, 2, 4, 6, 8]


async def test_what_is_measured() -> None:
    """Steps, rows, the sizes of batches, and a rate for each kind."""
    desk = Desk()
    async with desk.compute:
        await desk.open("a", "b")
        await desk.busy("a")
        desk.submit("a", 1, rows(1, 1))
        desk.submit("b", 0, rows(0, 60))
        await desk.settle()
    stats = desk.compute.stats
    assert (stats.steps, stats.rows, stats.max_batch_sessions) == (2, 62, 2)
    assert stats.batch_sessions == {1: 1, 2: 1}
    assert stats.decode_rows_per_s > 0
    assert stats.prefill_rows_per_s > 0


async def test_a_step_waits_for_whoever_is_due() -> None:
    """Two sessions that shared two steps share the third, though one of them comes back later.

    The worker's clock stands still but for the steps: only the second's arrival can begin the last one.
    """
    desk = Desk()

    def step(batch: Sequence[Rows], pauses: Mapping[str, int]) -> list[torch.Tensor]:
        desk.time_s += 0.1
        return FakeRunner.step(desk.runner, batch, pauses)

    desk.runner.step = step  # type: ignore[method-assign]  # a step takes time
    async with desk.compute:
        await desk.open("a", "b", "other")
        for position in range(2):
            await desk.in_flight("other", position, rows(position, 1))
            desk.submit("a", position, rows(position, 1))
            desk.submit("b", position, rows(position, 1))
            await desk.settle()
        await desk.compute.close("other")
        desk.submit("a", 2, rows(2, 1))
        await desk.compute.between_steps(lambda: None)
        assert desk.compute.queued_rows == 1
        desk.submit("b", 2, rows(2, 1))
        await desk.settle()
    assert desk.runner.batches[-1] == [("a", 2, 1), ("b", 2, 1)]


async def test_a_full_queue_refuses_early_and_says_when() -> None:
    """The session that asked too much is as it was, and goes on when there is room."""
    desk = Desk(Limits(max_queued_rows=8))
    async with desk.compute:
        await desk.open("a", "b")
        await desk.busy("a")
        desk.submit("a", 1, rows(1, 6))
        with pytest.raises(ServerFull) as caught:
            desk.submit("b", 0, rows(0, 3))
        assert caught.value.retry_after > 0
        await desk.settle()
        desk.submit("b", 0, rows(0, 3))
        await desk.settle()
    assert desk.got("b") == [0, 2, 4]


class ShortStepDesk(Desk):
    """Steps take a millisecond of the worker's clock, in any thread, and the gate is open."""

    def __init__(self) -> None:
        super().__init__()
        self.runner.any_thread = True
        self.runner.gate.set()
        self.step_s = 0.001
        step = self.runner.step

        def timed(batch: Sequence[Rows], pauses: Mapping[str, int]) -> list[torch.Tensor]:
            outputs = step(batch, pauses)
            self.time_s += self.step_s
            return outputs

        self.runner.step = timed  # type: ignore[method-assign]  # the desk's own clock

    async def decode(self, session: str, position: int) -> None:
        """One row through, and the thread at rest again."""
        count = len(self.outputs)
        self.submit(session, position, rows(position, 1))
        while len(self.outputs) == count:
            await asyncio.sleep(0.001)
        await self.rest()

    async def rest(self) -> None:
        """Until the thread has given the run token back."""
        while self.compute._token.locked():
            await asyncio.sleep(0.001)


HERE = threading.main_thread().name


async def test_short_steps_of_a_session_that_is_alone_are_made_in_the_loop() -> None:
    """From the second on, when the first has shown how long they take; the rows and their order are the same."""
    desk = ShortStepDesk()
    async with desk.compute:
        await desk.open("a")
        for position in range(4):
            await desk.decode("a", position)
        assert desk.runner.threads == ["shoal-compute", HERE, HERE, HERE]
        assert desk.got("a") == [0, 2, 4, 6]
        await desk.compute.close("a")
        assert "a" not in desk.runner.lengths


async def test_long_steps_and_prefills_are_the_threads() -> None:
    """What would keep the loop from its other work is not made there."""
    desk = ShortStepDesk()
    async with desk.compute:
        await desk.open("a")
        await desk.decode("a", 0)
        desk.submit("a", 1, rows(1, 20))
        await desk.settle()
        await desk.rest()
        desk.step_s = 1.0
        for position in range(21, 24):
            await desk.decode("a", position)
        assert desk.runner.threads == ["shoal-compute", "shoal-compute", HERE, "shoal-compute", "shoal-compute"]


async def test_a_runner_that_wants_one_thread_gets_one() -> None:
    """However short its steps are."""
    desk = ShortStepDesk()
    desk.runner.any_thread = False
    async with desk.compute:
        await desk.open("a")
        for position in range(3):
            await desk.decode("a", position)
        assert set(desk.runner.threads) == {"shoal-compute"}


async def test_sessions_that_decode_together_are_the_threads() -> None:
    """While it computes for one, the loop reads what the other has sent."""
    desk = ShortStepDesk()
    async with desk.compute:
        await desk.open("a", "b")
        for position in range(3):
            await desk.decode("a", position)
            await desk.decode("b", position)
        # "a" was away for the first time when "b" came, and nobody knew yet that it would come back.
        assert desk.runner.threads[3:] == ["shoal-compute"] * 3


async def test_while_the_thread_has_something_to_do_it_makes_the_steps() -> None:
    """Its order comes first: the loop does not overtake it."""
    desk, release = ShortStepDesk(), threading.Event()
    async with desk.compute:
        await desk.open("a", "b")
        await desk.decode("a", 0)
        ordered = asyncio.ensure_future(desk.compute.between_steps(release.wait))
        await asyncio.sleep(0)
        desk.submit("a", 1, rows(1, 1))
        desk.compute.rewind("a", 1)
        desk.submit("a", 1, rows(7, 1))
        desk.submit("b", 0, rows(0, 1))
        release.set()
        await ordered
        await desk.settle()
        assert desk.got("a") == [0, 14]
        assert desk.got("b") == [0]
        assert set(desk.runner.threads) == {"shoal-compute"}


async def test_a_failure_in_the_loop_is_its_sessions() -> None:
    """It is closed and told, as in the thread; others go on."""
    desk = ShortStepDesk()
    async with desk.compute:
        await desk.open("a", "b")
        await desk.decode("a", 0)
        desk.runner.poison = 1.0
        desk.submit("a", 1, rows(1, 1))
        await desk.settle()
        assert desk.failures == ["a"]
        desk.runner.poison = -1.0
        await desk.decode("b", 0)
        assert desk.got("b") == [0]


async def test_the_end_of_arithmetic_in_the_loop_is_not_silent() -> None:
    """What no step may raise ends the thread too, and everybody is told."""
    desk = ShortStepDesk()

    def broken(batch: Sequence[Rows], pauses: Mapping[str, int]) -> list[torch.Tensor]:
        raise GeneratorExit("torch is gone")

    async with desk.compute:
        await desk.open("a", "b")
        await desk.decode("a", 0)
        desk.runner.step = broken  # type: ignore[method-assign]  # nothing raises this by itself
        with pytest.raises(GeneratorExit):
            desk.submit("a", 1, rows(1, 1))
        with pytest.raises(ShoalError, match="has stopped"):
            desk.submit("b", 0, rows(0, 1))
    assert sorted(desk.failures) == ["a", "b"]


DEPTH = 4


class SlicedRunner(FakeRunner):
    """Rows may pause between its four blocks; `slices` says which rows went from where to where, step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.at: dict[str, int] = {}
        self.hold_before = -1  # the slice of "a" before which the thread stands still until `go`
        self.held, self.go = threading.Event(), threading.Event()
        self.slices: list[list[tuple[str, int, int, int, int]]] = []

    def truncate(self, session: str, num_tokens: int) -> None:
        """Rows under way begin anew."""
        self.at.pop(session, None)
        super().truncate(session, num_tokens)

    def close(self, session: str) -> None:
        """Forget those under way too."""
        self.at.pop(session, None)
        super().close(session)

    def step(self, batch: Sequence[Rows], pauses: Mapping[str, int]) -> list[torch.Tensor]:
        """As before, but nothing comes of rows that pause."""
        if "a" in [rows.session for rows in batch]:
            self.hold_before -= 1
            if self.hold_before == -1:
                self.held.set()
                assert self.go.wait(10)
        if any((rows.hidden_states == self.poison).any() for rows in batch):
            for rows in batch:
                self.truncate(rows.session, rows.position)
            raise RuntimeError("poisoned")
        outputs, slices = [], []
        for rows in batch:
            assert self.lengths[rows.session] == rows.position
            count, start = rows.hidden_states.shape[0], self.at.pop(rows.session, 0)
            stop = pauses.get(rows.session, DEPTH)
            slices.append((rows.session, rows.position, count, start, stop))
            if stop < DEPTH:
                self.at[rows.session] = stop
            else:
                self.lengths[rows.session] += count
            outputs.append(2 * rows.hidden_states[: count if stop == DEPTH else 0])
        self.slices.append(slices)
        return outputs


class SlicedDesk(Desk):
    """There is time for one block of 32 rows at a time, beside a session that decodes: "b", whose rows come back at once."""

    def __init__(self) -> None:
        super().__init__()
        self.runner: SlicedRunner = SlicedRunner()  # type: ignore[assignment]  # one that can pause
        self.queue = BatchQueue(depth=DEPTH)
        self.compute = ComputeThread(self.runner, self.queue, self.now)
        budget = self.queue.budget
        budget.decode_s, budget.alone_s, budget.beside_s = 0.001, 4e-5, 4e-5
        budget.measured = lambda *_: None  # type: ignore[method-assign]  # it has learnt enough
        self.left = 0
        delay = self.queue.delay  # on a busy machine "b" may be late
        delay.anybody_away = lambda _: self.left > 0  # type: ignore[method-assign]
        delay.hold_s = lambda *_: 0.0  # type: ignore[method-assign]

    def now(self) -> float:
        """A clock that moves a little whenever somebody looks."""
        self.time_s += 1e-5
        return self.time_s

    async def decode(self, count: int) -> None:
        """Open "b" and let it decode so many rows, one after the other; the first few before this returns."""
        self.left = count
        await self.compute.open("b", "b", SPAN, 99, self.again, lambda error: self.failures.append("b"))
        self.submit("b", 0, rows(0, 1))
        while len(self.outputs) < 4:
            await asyncio.sleep(0)

    def again(self, output: Rows, trace: HopTrace) -> None:
        """The next row of "b"."""
        self.keep(output, trace)
        self.left -= 1
        if self.left:
            position = output.position + 1
            self.submit("b", position, rows(position, 1))

    async def in_slice(self, number: int, count: int, first: int = 0) -> None:
        """Submit so many rows of "a", numbered from `first`, and wait until the thread stands still in one of their slices."""
        self.runner.hold_before = number
        self.submit("a", 0, rows(first, count))
        await asyncio.to_thread(self.runner.held.wait, 10)

    async def finish(self) -> None:
        """Let everything be computed."""
        self.runner.go.set()
        while self.left or self.compute.queued_rows or self.queue.wait_s(self.time_s) is not None:
            await asyncio.sleep(0.001)
        await self.compute.between_steps(lambda: None)

    def of(self, session: str) -> list[tuple[int, int, int, int]]:
        """A session's slices."""
        return [(at, *rest) for step in self.runner.slices for name, at, *rest in step if name == session]  # type: ignore[misc]


async def test_a_prefill_beside_decoding_goes_through_the_blocks_in_slices() -> None:
    """Chunks of 32 rows, a block in a step, one chunk after the other; whoever decodes is in every step."""
    desk = SlicedDesk()
    async with desk.compute:
        await desk.open("a")
        await desk.decode(40)
        desk.submit("a", 0, rows(0, 70), 12)
        await desk.finish()
    assert desk.got("a") == [2 * at for at in range(70)]
    assert desk.got("b") == [2 * at for at in range(40)]
    assert desk.of("a")[:8] == [(at, 32, block, block + 1) for at in (0, 32) for block in range(DEPTH)]
    assert desk.compute.stats.rows == 110
    assert sum(len(step) == 1 and step[0][0] == "b" for step in desk.runner.slices) >= 40 - 12


async def test_a_prefill_that_is_left_alone_goes_on_in_one_step() -> None:
    """When nobody decodes any more the rest of the blocks is one step."""
    desk = SlicedDesk()
    async with desk.compute:
        await desk.open("a")
        await desk.decode(60)
        await desk.in_slice(1, 40)
        closing = asyncio.ensure_future(desk.compute.close("b"))
        await asyncio.sleep(0)
        desk.left = 0
        await desk.finish()
        await closing
    assert desk.got("a") == [2 * at for at in range(40)]
    assert desk.of("a") == [(0, 32, 0, 1), (0, 32, 1, 2), (0, 32, 2, DEPTH), (32, 8, 0, DEPTH)]


async def test_rows_under_way_are_taken_back() -> None:
    """What was before them begins anew, and what comes in their place follows it."""
    desk = SlicedDesk()
    async with desk.compute:
        await desk.open("a")
        await desk.decode(40)
        await desk.in_slice(2, 32)
        desk.compute.rewind("a", 10)
        desk.submit("a", 10, rows(50, 20))
        await desk.finish()
    assert desk.got("a") == [2 * at for at in (*range(10), *range(50, 70))]
    assert desk.got("b") == [2 * at for at in range(40)]


async def test_a_session_that_is_closed_with_rows_under_way_leaves_nothing() -> None:
    """The other one goes on, and so does another prefill."""
    desk = SlicedDesk()
    async with desk.compute:
        await desk.open("a", "c")
        await desk.decode(60)
        await desk.in_slice(2, 32)
        closing = asyncio.ensure_future(desk.compute.close("a"))
        await asyncio.sleep(0)
        desk.submit("c", 0, rows(0, 32))
        await desk.finish()
        await closing
    assert desk.got("a") == []
    assert desk.got("c") == [2 * at for at in range(32)]
    assert desk.runner.lengths == {"b": 60, "c": 32}


async def test_a_failure_with_rows_under_way_is_its_owners_alone() -> None:
    """The step is tried for each session by itself, from the first block on."""
    desk = SlicedDesk()
    async with desk.compute:
        await desk.open("a")
        await desk.decode(30)
        await desk.in_slice(2, 32, first=100)
        desk.runner.poison = float(desk.runner.lengths["b"] + 1)  # the row that "b" sends next
        desk.runner.go.set()
        while not desk.failures:
            await asyncio.sleep(0.001)
        desk.left = 0
        await desk.finish()
    assert desk.failures == ["b"]
    assert desk.got("a") == [2 * at for at in range(100, 132)]


async def test_when_nobody_is_left_the_thread_rests() -> None:
    """Both sessions are closed, one with rows under way: the thread takes new ones as before."""
    desk = SlicedDesk()
    async with desk.compute:
        await desk.open("a")
        await desk.decode(60)
        await desk.in_slice(2, 32)
        closing = [asyncio.ensure_future(desk.compute.close(session)) for session in "ab"]
        await asyncio.sleep(0)
        desk.left = 0
        await desk.finish()
        await asyncio.gather(*closing)
        await desk.open("c")
        desk.submit("c", 0, rows(0, 3))
        await desk.finish()
    assert desk.got("c") == [0, 2, 4]
    assert desk.compute.failure is None
