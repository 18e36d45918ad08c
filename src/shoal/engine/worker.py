"""The one compute thread of a device, with an asyncio face.

The thread picks its next batch itself, under a lock, so that no step waits for the event loop; the loop gets results in
batches of callbacks. The caches belong to whoever makes a step: opening, truncating and closing are orders that the thread
carries out between steps. Short steps of a session that is alone are made in the loop while the thread rests: to wake it and
to be woken by it takes longer than what the loop could do meanwhile.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Protocol

import torch
from torch import Tensor

from shoal.engine.deliveries import Deliveries
from shoal.engine.job import Job, Order
from shoal.engine.runner import Rows
from shoal.engine.scheduler import DECODE_ROWS, Scheduler, Take
from shoal.engine.session_rows import Chunk, OnFailure, OnOutput, Piece, StepOutput, Stream
from shoal.engine.worker_stats import WorkerStats
from shoal.errors import ProtocolError, ServerFull, ShoalError
from shoal.types import Span

__all__ = ["StepOutput", "StepRunner", "Worker"]


class StepRunner(Protocol):
    """What the thread runs; see `runner.Runner`. `any_thread`: several may call it, one at a time."""

    found_rows: int

    @property
    def any_thread(self) -> bool: ...

    def open(self, session: str, span: Span, max_tokens: int, client: str) -> None: ...

    def truncate(self, session: str, num_tokens: int) -> None: ...

    def close(self, session: str) -> None: ...

    def step(self, batch: Sequence[Rows]) -> list[Tensor]: ...


class Worker:
    """Runs steps in a thread of its own. Open with `async with`; call everything from that event loop."""

    def __init__(self, runner: StepRunner, scheduler: Scheduler, now: Callable[[], float] = time.perf_counter) -> None:
        self.stats = WorkerStats()
        self.failure: BaseException | None = None
        self._runner = runner
        self._scheduler = scheduler
        self._now = now
        self._could_begin_at: float | None = None
        self._held_s = 0.0
        self._changed = threading.Condition()
        self._orders: deque[Order] = deque()
        self._streams: dict[str, Stream] = {}
        self._under_way: list[Job] = []  # rows of prefill that have gone through a part of the blocks
        self._resting = False  # the thread waits for something to do
        self._here = False  # a step is made in the event loop
        self._closing = False
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="shoal-compute", daemon=True)

    async def __aenter__(self) -> Worker:
        self._loop = asyncio.get_running_loop()
        self._deliveries = Deliveries(self._loop)
        self._thread.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify()
        await asyncio.to_thread(self._thread.join)
        del self._runner  # the weights go now, whoever still holds this object

    async def open(
        self,
        session: str,
        client: str,
        span: Span,
        max_tokens: int,
        on_output: OnOutput,
        on_failure: OnFailure,
        background: bool = False,
    ) -> None:
        """Room for a session; raises ServerFull, also when the thread has stopped, or ValueError for a session that is open.

        The rows of one in the `background` are computed beside those of others, until `to_front`.

        `on_failure` is told once if the session's rows cannot be computed; the session is closed then.
        """
        opened = False

        def work() -> None:
            nonlocal opened
            self._runner.open(session, span, max_tokens, client)
            opened = True

        def undo() -> None:
            if opened:
                self._runner.close(session)

        try:
            await self._order(work)
        except asyncio.CancelledError:
            self._give(Order(undo))  # what was ordered is done all the same
            raise
        self._streams[session] = Stream(client, span, on_output, on_failure)
        if background:
            with self._changed:
                self._scheduler.background.add(session)

    def submit(self, session: str, position: int, hidden_states: Tensor, tag: object = None) -> None:
        """Queue rows [n, hidden], at least one, which must follow those before.

        Raises ProtocolError when they do not, ServerFull when the queue is full, ShoalError when the thread has stopped.
        """
        with self._changed:
            if self._closing or self._stopped:
                raise ShoalError("the compute thread has stopped")
            stream = self._streams.get(session)
            if stream is None or position != stream.position:
                raise ProtocolError(f"rows at {position} do not follow what session {session[:8]} has sent")
            num_rows, rows_per_s = hidden_states.shape[0], self.stats.prefill_rows_per_s
            self._scheduler.add(session, stream.client, num_rows, rows_per_s, self._now())
            stream.chunks.append(Chunk(position, hidden_states, tag))
            stream.position += hidden_states.shape[0]
            self.stats.queued_rows = self._scheduler.queued_rows
            prompt = self._resting and not self._here and not self._orders and self._is_prompt()
            if prompt:
                self._here = True
            elif not self._here:
                self._changed.notify()
        if prompt:
            self._step_here()

    def _is_prompt(self) -> bool:
        """Whether the next step may be made in the loop."""
        return self._runner.any_thread and not self._under_way and self._scheduler.is_prompt(self._now())

    def _step_here(self) -> None:
        """In the loop: make a step while the thread rests."""
        try:
            with self._changed:
                jobs = self._pick()
            self._step(jobs)
        except BaseException as error:
            self._die(error)
            raise
        finally:
            self._deliveries.deliver()
            with self._changed:
                self._here = False
                if self._orders or self._closing or self._stopped or self._scheduler.queued_rows:
                    self._changed.notify()

    def to_front(self, session: str) -> None:
        """A session's rows are urgent from now on."""
        with self._changed:
            self._scheduler.background.discard(session)

    def to_back(self, session: str) -> None:
        """A session's rows are computed beside those of others from now on, until `to_front`."""
        with self._changed:
            if session in self._streams:
                self._scheduler.background.add(session)

    def rewind(self, session: str, position: int) -> None:
        """Rows from `position` on are void: queued ones are forgotten, computed ones are not delivered any more."""
        with self._changed:
            stream = self._streams.get(session)
            if stream is not None and not self._stopped:
                self._void(session, stream, position)
                self._give(Order(partial(self._truncate, session, stream, position)))

    async def close(self, session: str) -> None:
        """Forget a session and free its cache; closing twice is harmless."""
        if session in self._streams:
            done: asyncio.Future[None] = self._loop.create_future()
            self._forget(session, done)
            await done

    async def between_steps(self, work: Callable[[], object]) -> None:
        """Have the thread do something between two steps; raises what the work raises, ServerFull when it has stopped."""
        await self._order(work)

    def _order(self, work: Callable[[], object]) -> asyncio.Future[None]:
        done: asyncio.Future[None] = self._loop.create_future()
        with self._changed:
            if self._closing or self._stopped:
                raise ServerFull("this server computes no more")  # others do: whoever asks may wait for one
            self._give(Order(work, done))
        return done

    def _give(self, order: Order) -> None:
        with self._changed:
            self._orders.append(order)
            self._changed.notify()

    def _forget(self, session: str, done: asyncio.Future[None] | None = None) -> None:
        """Void an open session's rows and have its cache freed; `done` is set then."""
        with self._changed:
            stream = self._streams.pop(session, None)
            if stream is not None:
                self._void(session, stream, 0)
            self._scheduler.forget(session)
            if not self._stopped:
                self._give(Order(partial(self._runner.close, session), done))
            elif done is not None:
                done.set_result(None)

    def _void(self, session: str, stream: Stream, position: int) -> None:
        stream.truncate(position)
        self._scheduler.drop(session, keep_rows=stream.queued)
        self.stats.queued_rows = self._scheduler.queued_rows

    def _post(self, callback: Callable[[], None]) -> None:
        """Run something in the event loop, together with what else is due there."""
        self._deliveries.post(callback, wake=not self._here)

    def _hand_over(self, stream: Stream, piece: Piece, output: StepOutput) -> None:
        """In the loop: deliver what was not taken back meanwhile."""
        with self._changed:
            stream.pieces.remove(piece)
            count = piece.stop - piece.start
        if count == 0:
            return
        try:
            whole = count == output.hidden_states.shape[0]
            stream.on_output(output if whole else output._replace(hidden_states=output.hidden_states[:count]))
        except Exception as error:
            if self._streams.get(output.session) is stream:
                self._forget(output.session)
                stream.on_failure(error)

    def _run(self) -> None:
        try:
            while (work := self._next()) is not None:
                work()
        except BaseException as error:  # never silent: whoever waits is told, and every later call raises
            self._die(error)

    def _die(self, error: BaseException) -> None:
        with self._changed:
            self.failure, self._stopped = error, True
            orders, streams = list(self._orders), list(self._streams.values())
            self._orders.clear()
            self._streams.clear()
        told = ShoalError(f"the compute thread died: {type(error).__name__}: {error}")
        told.__cause__ = error
        for stream in streams:
            stream.truncate(0)
            self._post(partial(stream.on_failure, told))
        for order in orders:
            if order.done is not None:
                self._post(partial(order.finish, told))

    def _next(self) -> Callable[[], None] | None:
        """What to do now: the oldest order, else a step; None when it is time to stop."""
        with self._changed:
            while (wait_s := self._rest_s()) != 0:
                self._resting = wait_s is None
                self._changed.wait(wait_s)
                self._resting = False
            # Orders come first: what was truncated before rows came must be gone from the cache when they are computed.
            if self._orders:
                return self._carry_out
            if self._closing or self._stopped:
                self._stopped = True
                return None
            return partial(self._step, self._pick())

    def _pick(self) -> list[Job]:
        """The next step's rows: those under way, and others off the queue; none if all those were taken back."""
        now = self._now()
        under_way = [job for job in map(self._still_wanted, self._under_way) if job is not None]
        jobs = [self._job(take) for take in self._scheduler.pick(now, [job.rows.session for job in under_way])]
        prefill = under_way + [job for job in jobs if self._scheduler.prefills(job.rows.session)]
        jobs = [job for job in jobs if not self._scheduler.prefills(job.rows.session)]
        blocks = self._scheduler.blocks(sum(job.num_rows for job in prefill)) if prefill else 0
        self._under_way = [] if blocks else prefill
        if blocks:
            jobs += [job.onwards(blocks, self._scheduler.depth) for job in prefill]
        self._held_s, self._could_begin_at = now - (self._could_begin_at or now), None
        self.stats.queued_rows = self._scheduler.queued_rows
        return jobs

    def _rest_s(self) -> float | None:
        """How long the thread has nothing to do; None: until it is told."""
        if self._here:
            return None
        return 0.0 if self._orders or self._closing or self._stopped else self._until_step_s()

    def _until_step_s(self) -> float | None:
        """How long to wait for company before a step; None as long as no rows wait."""
        if not (self._scheduler.queued_rows or self._under_way):
            self._could_begin_at = None
            return None
        now = self._now()
        if self._could_begin_at is None:
            self._could_begin_at = now
        return self._scheduler.hold_s(self._could_begin_at, now)

    def _carry_out(self) -> None:
        order, error = self._orders[0], None  # it stays there until it is done: if the thread dies of it, it is told
        try:
            order.work()
        except Exception as caught:
            if order.done is None:
                raise
            error = caught
        self._orders.popleft()
        if order.done is not None:
            self._post(partial(order.finish, error))

    def _truncate(self, session: str, stream: Stream, position: int) -> None:
        try:
            self._runner.truncate(session, position)
        except Exception as error:
            self._fail(session, stream, error)

    def _job(self, take: Take) -> Job:
        stream = self._streams[take.session]
        pieces = stream.take(take.num_rows)
        rows = pieces[0].rows if len(pieces) == 1 else torch.cat([piece.rows for piece in pieces])
        return Job(stream, pieces, Rows(take.session, pieces[0].start, stream.span, rows))

    def _still_wanted(self, job: Job) -> Job | None:
        """A job under way without the rows that were taken back; None when nothing is left."""
        return job.remaining() if self._streams.get(job.rows.session) is job.stream else None

    def _step(self, jobs: list[Job]) -> None:
        if not jobs:
            return
        started_at, began_at = time.perf_counter(), self._now()
        try:
            outputs = self._runner.step([job.rows for job in jobs])
        except Exception as error:
            self._isolate([job.whole() for job in jobs], error)
            return
        ended_at, elapsed_s = self._now(), time.perf_counter() - started_at
        jobs = [job._replace(spent_s=job.spent_s + elapsed_s) for job in jobs]
        self._under_way += [job for job, output in zip(jobs, outputs, strict=True) if not output.shape[0]]
        if self._here:  # nothing can come back before this returns: the rows go first
            self._hand_out(jobs, outputs, started_at + elapsed_s)
            self._deliveries.deliver()
        self._count(jobs, outputs, began_at, ended_at, elapsed_s)
        if not self._here:
            self._hand_out(jobs, outputs, started_at + elapsed_s)

    def _count(
        self, jobs: list[Job], outputs: list[Tensor], began_at: float, ended_at: float, elapsed_s: float
    ) -> None:
        takes = [Take(job.rows.session, job.num_rows) for job in jobs]
        found, share = self._runner.found_rows, min(job.share for job in jobs)
        with self._changed:
            self._scheduler.done(takes, began_at, ended_at, self._held_s, whole=not found, share=share)
        num_rows, done_rows = sum(job.share * job.num_rows for job in jobs), sum(output.shape[0] for output in outputs)
        decoding = num_rows <= DECODE_ROWS * len(jobs)
        self.stats.count(len(jobs), num_rows, done_rows, elapsed_s, decoding, found_rows=found)

    def _hand_out(self, jobs: list[Job], outputs: list[Tensor], ended_at: float) -> None:
        num_rows = sum(job.num_rows for job in jobs)
        for job, output in zip(jobs, outputs, strict=True):
            for piece in job.pieces if output.shape[0] else ():
                first = piece.start - job.rows.position
                rows = output if len(job.pieces) == 1 else output[first : first + piece.rows.shape[0]]
                done = StepOutput(
                    job.rows.session,
                    piece.start,
                    rows,
                    ended_at - job.spent_s - piece.queued_at,
                    job.spent_s,
                    len(jobs),
                    num_rows,
                    piece.tag,
                )
                self._post(partial(self._hand_over, job.stream, piece, done))

    def _isolate(self, jobs: list[Job], error: Exception) -> None:
        """A step failed: find out whose rows it was, so that the others go on."""
        if len(jobs) > 1:
            for job in jobs:
                self._step([job])
            return
        (job,) = jobs
        with self._changed:
            taken_back = all(piece.stop == piece.start for piece in job.pieces)
            job.stream.pieces = [piece for piece in job.stream.pieces if piece not in job.pieces]
        if not taken_back:
            self._fail(job.rows.session, job.stream, error)

    def _fail(self, session: str, stream: Stream, error: Exception) -> None:
        """In the thread: close a session because of an error, and say so."""
        with self._changed:
            if self._streams.get(session) is not stream:
                return  # its owner has closed it meanwhile
            del self._streams[session]
            self._void(session, stream, 0)
            self._scheduler.forget(session)
        self._runner.close(session)
        self._post(partial(stream.on_failure, error))
