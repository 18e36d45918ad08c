"""The one compute thread of a device, with an asyncio face.

The thread picks its next batch itself, under a lock, so that no step waits for the event loop; the loop gets results in
batches of callbacks. The caches belong to the thread: opening, truncating and closing are orders that it carries out
between steps.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from shoal.engine.runner import Rows
from shoal.engine.scheduler import DECODE_ROWS, Scheduler, Take
from shoal.engine.stats import WorkerStats
from shoal.errors import ProtocolError, ShoalError
from shoal.types import Span


class StepRunner(Protocol):
    """What the thread runs; see `runner.Runner`."""

    def open(self, session: str, span: Span, max_tokens: int) -> None: ...

    def truncate(self, session: str, num_tokens: int) -> None: ...

    def close(self, session: str) -> None: ...

    def step(self, batch: Sequence[Rows]) -> list[Tensor]: ...


class StepOutput(NamedTuple):
    """Rows that were computed: hidden states [n, hidden] at `position`, all from the chunk submitted with `tag`."""

    session: str
    position: int
    hidden_states: Tensor
    queue_s: float
    compute_s: float
    batch_sessions: int
    batch_rows: int
    tag: Any


OnOutput = Callable[[StepOutput], None]
OnFailure = Callable[[Exception], None]


class _Chunk:
    """Submitted rows that wait: [start, stop) of a session's stream."""

    def __init__(self, start: int, rows: Tensor, tag: object) -> None:
        self.start = start
        self.stop = start + rows.shape[0]
        self.rows = rows
        self.tag = tag
        self.queued_at = time.perf_counter()


class _Piece:
    """Rows of one chunk that are in a step or on their way to the loop; those from `stop` on are void."""

    def __init__(self, start: int, rows: Tensor, chunk: _Chunk) -> None:
        self.start = start
        self.stop = start + rows.shape[0]
        self.rows = rows
        self.tag = chunk.tag
        self.queued_at = chunk.queued_at


class _Stream:
    """One session's rows at this worker."""

    def __init__(self, client: str, span: Span, on_output: OnOutput, on_failure: OnFailure) -> None:
        self.client = client
        self.span = span
        self.on_output = on_output
        self.on_failure = on_failure
        self.position = 0
        self.chunks: deque[_Chunk] = deque()
        self.pieces: list[_Piece] = []

    def take(self, num_rows: int) -> list[_Piece]:
        """The next rows, off the queue."""
        pieces = []
        while num_rows:
            chunk = self.chunks[0]
            count = min(chunk.stop - chunk.start, num_rows)
            pieces.append(_Piece(chunk.start, chunk.rows[:count], chunk))
            num_rows -= count
            chunk.rows, chunk.start = chunk.rows[count:], chunk.start + count
            if chunk.start == chunk.stop:
                self.chunks.popleft()
        self.pieces += pieces
        return pieces

    def truncate(self, position: int) -> None:
        """Rows from `position` on are void, wherever they are."""
        self.position = min(self.position, position)
        for piece in self.pieces:
            piece.stop = min(piece.stop, max(position, piece.start))
        while self.chunks and self.chunks[-1].start >= position:
            self.chunks.pop()
        if self.chunks and self.chunks[-1].stop > position:
            chunk = self.chunks[-1]
            chunk.rows, chunk.stop = chunk.rows[: position - chunk.start], position

    @property
    def queued(self) -> int:
        return sum(chunk.stop - chunk.start for chunk in self.chunks)


class Worker:
    """Runs steps in a thread of its own. Open with `async with`; call everything from that event loop."""

    def __init__(self, runner: StepRunner, scheduler: Scheduler) -> None:
        self.stats = WorkerStats()
        self.failure: BaseException | None = None
        self._runner = runner
        self._scheduler = scheduler
        self._changed = threading.Condition()
        self._orders: deque[Callable[[], None]] = deque()
        self._streams: dict[str, _Stream] = {}
        self._finished: deque[Callable[[], None]] = deque()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="shoal-compute", daemon=True)

    async def __aenter__(self) -> Worker:
        self._loop = asyncio.get_running_loop()
        self._thread.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify()
        await asyncio.to_thread(self._thread.join)

    async def open(
        self, session: str, client: str, span: Span, max_tokens: int, on_output: OnOutput, on_failure: OnFailure
    ) -> None:
        """Room for a session; raises ServerFull. `on_failure` is told if its rows cannot be computed."""
        await self.between_steps(lambda: self._runner.open(session, span, max_tokens))
        self._streams[session] = _Stream(client, span, on_output, on_failure)

    def submit(self, session: str, position: int, hidden_states: Tensor, tag: object = None) -> None:
        """Queue rows [n, hidden], which must follow those before.

        Raises ProtocolError when they do not, ServerFull when the queue is full.
        """
        with self._changed:
            stream = self._streams.get(session)
            if stream is None or position != stream.position:
                raise ProtocolError(f"rows at {position} do not follow what session {session[:8]} has sent")
            rate = self.stats.prefill_rows_per_s
            self._scheduler.add(session, stream.client, hidden_states.shape[0], rate)
            stream.chunks.append(_Chunk(position, hidden_states, tag))
            stream.position += hidden_states.shape[0]
            self.stats.queued_rows = self._scheduler.queued_rows
            self._changed.notify()

    def rewind(self, session: str, position: int) -> None:
        """Rows from `position` on are void: queued ones are forgotten, computed ones are not delivered any more."""
        with self._changed:
            stream = self._streams.get(session)
            if stream is None:
                return
            stream.truncate(position)
            self._scheduler.drop(session, keep_rows=stream.queued)
            self._orders.append(lambda: self._runner.truncate(session, position))
            self._changed.notify()

    async def close(self, session: str) -> None:
        """Forget a session and free its cache; closing twice is harmless."""
        with self._changed:
            stream = self._streams.pop(session, None)
            if stream is None:
                return
            stream.truncate(0)
            self._scheduler.drop(session)
        await self.between_steps(lambda: self._runner.close(session))

    async def between_steps(self, work: Callable[[], object]) -> None:
        """Have the thread do something between two steps; raises what the work raises."""
        done: asyncio.Future[None] = self._loop.create_future()

        def carry_out() -> None:
            try:
                work()
            except Exception as error:
                self._post(partial(_finish, done, error))
            else:
                self._post(partial(_finish, done, None))

        with self._changed:
            if self._closing or self.failure is not None:
                raise ShoalError("the compute thread has stopped")
            self._orders.append(carry_out)
            self._changed.notify()
        await done

    def _post(self, callback: Callable[[], None]) -> None:
        """Run something in the event loop, together with what else is due there."""
        self._finished.append(callback)
        if len(self._finished) == 1 or self._closing:
            self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        while self._finished:
            self._finished.popleft()()

    def _run(self) -> None:
        try:
            while (jobs := self._next()) is not None:
                if jobs:
                    self._step(jobs)
        except BaseException as error:  # never silent: whoever waits is told, and every later call raises
            self.failure = error
            for stream in list(self._streams.values()):
                self._post(partial(stream.on_failure, ShoalError(f"the compute thread died: {error}")))

    def _next(self) -> list[_Job] | None:
        """Carry out the orders, then the next step's rows; None when it is time to stop."""
        with self._changed:
            while not (self._orders or self._scheduler.queued_rows or self._closing):
                self._changed.wait()
            orders, self._orders = self._orders, deque()
            # Rows are picked only after the orders: what was truncated before they came must be gone from the cache.
            jobs = [] if orders or self._closing else [self._job(take) for take in self._scheduler.pick()]
            self.stats.queued_rows = self._scheduler.queued_rows
            stopping = self._closing and not orders
        for order in orders:
            order()
        return None if stopping else jobs

    def _job(self, take: Take) -> _Job:
        stream = self._streams[take.session]
        pieces = stream.take(take.num_rows)
        rows = pieces[0].rows if len(pieces) == 1 else torch.cat([piece.rows for piece in pieces])
        return _Job(stream, pieces, Rows(take.session, pieces[0].start, stream.span, rows))

    def _step(self, jobs: list[_Job]) -> None:
        started_at = time.perf_counter()
        try:
            outputs = self._runner.step([job.rows for job in jobs])
        except Exception as error:
            self._isolate(jobs, error)
            return
        elapsed_s = time.perf_counter() - started_at
        num_rows = sum(job.rows.hidden_states.shape[0] for job in jobs)
        self.stats.count(len(jobs), num_rows, elapsed_s, decoding=num_rows <= DECODE_ROWS * len(jobs))
        for job, output in zip(jobs, outputs, strict=True):
            for piece in job.pieces:
                first = piece.start - job.rows.position
                rows = output[first : first + piece.rows.shape[0]]
                done = StepOutput(
                    job.rows.session,
                    piece.start,
                    rows,
                    started_at - piece.queued_at,
                    elapsed_s,
                    len(jobs),
                    num_rows,
                    piece.tag,
                )
                self._post(partial(self._hand_over, job.stream, piece, done))

    def _hand_over(self, stream: _Stream, piece: _Piece, output: StepOutput) -> None:
        """In the loop: deliver what was not taken back meanwhile."""
        with self._changed:
            stream.pieces.remove(piece)
            count = piece.stop - piece.start
        if count > 0:
            stream.on_output(output._replace(hidden_states=output.hidden_states[:count]))

    def _isolate(self, jobs: list[_Job], error: Exception) -> None:
        """A step failed: find out whose rows it was, so that the others go on."""
        if len(jobs) > 1:
            for job in jobs:
                self._step([job])
            return
        stream, session = jobs[0].stream, jobs[0].rows.session
        with self._changed:
            stream.truncate(0)
            self._scheduler.drop(session)
        self._post(partial(stream.on_failure, error))


class _Job(NamedTuple):
    """One session's part in a step."""

    stream: _Stream
    pieces: list[_Piece]
    rows: Rows


def _finish(done: asyncio.Future[None], error: Exception | None) -> None:
    if done.done():
        return
    if error is None:
        done.set_result(None)
    else:
        done.set_exception(error)
