"""The one compute thread of a device, with an asyncio face.

The thread asks the `BatchQueue` for its next batch itself, under a lock, so that no step waits for the event loop. The loop
gets the outputs of a step with one waking. The caches belong to the holder of the run token: to open, to truncate and to close
are commands that the thread carries out between steps.

A short step of a session that is alone is made in the loop, which takes the token while the thread rests: to wake the thread
and to be woken by it takes longer than what the loop could do meanwhile.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import NamedTuple, Protocol

from torch import Tensor

from shoal.engine.batch_queue import Batch, BatchQueue
from shoal.engine.deliveries import Deliveries
from shoal.errors import ServerFull, ShoalError
from shoal.protocol.messages import HopTrace
from shoal.protocol.rows import Rows
from shoal.types import Span

OnOutput = Callable[[Rows, HopTrace], None]
"""Takes rows that were computed, hidden states [n, hidden], and what their step took."""

OnFailure = Callable[[Exception], None]


class StepRunner(Protocol):
    """What the thread runs; see `runner.Runner`. `any_thread`: several may call it, one at a time."""

    found_rows: int

    @property
    def any_thread(self) -> bool: ...

    def open(self, session: str, span: Span, max_tokens: int, client: str) -> None: ...

    def truncate(self, session: str, num_tokens: int) -> None: ...

    def close(self, session: str) -> None: ...

    def step(self, batch: Sequence[Rows], pauses: Mapping[str, int]) -> list[Tensor]: ...


class ComputeThread:
    """Runs steps in a thread of its own. Make it, open it with `async with` and call everything in one event loop.

    `stats` are the queue's; `failure` is what the thread died of.
    """

    def __init__(self, runner: StepRunner, queue: BatchQueue, now: Callable[[], float] = time.perf_counter) -> None:
        self.stats = queue.stats
        self.failure: BaseException | None = None
        self._runner = runner
        self._queue = queue
        self._now = now
        self._loop = asyncio.get_running_loop()
        self._deliveries = Deliveries(self._loop)
        self._changed = threading.Condition()
        self._token = threading.Lock()  # the run token: its holder alone calls the runner
        self._commands: deque[_Command] = deque()
        self._owners: dict[str, _Owner] = {}
        self._closing = False
        self._ended = False
        self._thread = threading.Thread(target=self._main, name="shoal-compute", daemon=True)

    async def __aenter__(self) -> ComputeThread:
        self._thread.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify()
        await asyncio.to_thread(self._thread.join)
        del self._runner  # the weights go now, whatever still holds this object

    @property
    def queued_rows(self) -> int:
        """Rows that wait for a step."""
        return self._queue.queued_rows

    async def open(
        self,
        session: str,
        client: str,
        span: Span,
        max_tokens: int,
        on_output: OnOutput,
        on_failure: OnFailure,
        background: bool = False,
        turn: str | None = None,
    ) -> None:
        """Room for a session; raises ServerFull, also when the thread has stopped, or ValueError for a session that is open.

        The rows of one in the `background` are computed beside those of others, until `set_background` says otherwise. `turn`:
        with whose rows its own take turns; the client's if it is not given.

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
            await self.between_steps(work)
        except asyncio.CancelledError:
            self._command(_Command(undo))  # what was ordered is done all the same
            raise
        with self._changed:
            self._owners[session] = _Owner(on_output, on_failure)
            self._queue.open(session, client if turn is None else turn, background)

    def submit(self, rows: Rows) -> None:
        """Queue hidden states [n, hidden], at least one row, which must follow those before.

        Raises ProtocolError when they do not, ServerFull when the queue is full, ShoalError when the thread has stopped.
        """
        with self._changed:
            if self._closing or self._ended:
                raise ShoalError("the compute thread has stopped")
            now = self._now()
            self._queue.submit(rows, now)
            here = self._may_step_here(now) and self._token.acquire(blocking=False)
            if not here:
                self._wake()
        if here:
            self._step_here()

    def set_background(self, session: str, background: bool) -> None:
        """Whether a session's rows are computed beside those of others only; nothing for one that is not open."""
        with self._changed:
            self._queue.set_background(session, background)

    def rewind(self, session: str, position: int) -> None:
        """Rows from `position` on are void: those that wait are forgotten, those that were computed are not delivered."""
        with self._changed:
            if session in self._owners:
                self._queue.rewind(session, position)
                self._command(_Command(partial(self._truncate, session, position)))

    async def close(self, session: str) -> None:
        """Forget a session and free its cache; closing twice is harmless."""
        if session in self._owners:
            done: asyncio.Future[None] = self._loop.create_future()
            self._forget(session, done)
            await done

    async def between_steps(self, work: Callable[[], object]) -> None:
        """Have the thread do something between two steps; raises what the work raises, ServerFull when it has stopped."""
        done: asyncio.Future[None] = self._loop.create_future()
        with self._changed:
            if self._closing or self._ended:
                raise ServerFull("this server computes no more")  # others do: a client may wait for one of them
            self._command(_Command(work, done))
        await done

    def _command(self, command: _Command) -> None:
        with self._changed:
            if not self._ended:
                self._commands.append(command)
                self._wake()
            elif command.done is not None:
                command.done.set_result(None)

    def _wake(self) -> None:
        """There is something to do: the holder of the token sees it by itself; without one the thread is told."""
        if not self._token.locked():
            self._changed.notify()

    def _forget(self, session: str, done: asyncio.Future[None] | None = None) -> bool:
        """Void a session's rows and have its cache freed; `done` is set then. Returns whether it was open."""
        with self._changed:
            owner = self._owners.pop(session, None)
            self._queue.forget(session)
            self._command(_Command(partial(self._runner.close, session), done))
        return owner is not None

    # In the loop, with the token or for outputs

    def _may_step_here(self, now: float) -> bool:
        """Whether the next step may be made in the loop, if the thread rests."""
        return not self._commands and self._runner.any_thread and self._queue.is_short_and_alone(now)

    def _step_here(self) -> None:
        """With the token, in the loop: make a step, and give the token back."""
        try:
            with self._changed:
                batch = self._queue.next_batch(self._now())
            self._step(batch)
        except BaseException as error:
            self._die(error)
            raise
        finally:
            self._hand_out()
            with self._changed:
                self._token.release()
                if self._commands or self._closing or self._ended or self._queue.queued_rows:
                    self._changed.notify()

    def _hand_out(self) -> None:
        """Deliver the outputs that were not taken back meanwhile."""
        while (output := self._next_output()) is not None:
            owner, rows, trace = output
            try:
                owner.on_output(rows, trace)
            except Exception as error:
                if self._owners.get(rows.session) is owner and self._forget(rows.session):
                    self._deliveries.post(partial(owner.on_failure, error))

    def _next_output(self) -> tuple[_Owner, Rows, HopTrace] | None:
        with self._changed:
            output = self._queue.take_output()
            return None if output is None else (self._owners[output[0].session], *output)

    # In the thread, or with the token

    def _main(self) -> None:
        try:
            while (work := self._next()) is not None:
                work()
                self._token.release()
        except (
            BaseException
        ) as error:  # never silent: owners are told, then those who wait, and every later call raises
            self._die(error)

    def _next(self) -> Callable[[], None] | None:
        """What to do now, with the token: the oldest command, else a step; None when it is time to stop."""
        with self._changed:
            while True:
                wait_s = 0.0 if self._commands or self._closing or self._ended else self._queue.wait_s(self._now())
                if wait_s == 0 and self._token.acquire(blocking=False):
                    break
                self._changed.wait(wait_s or None)  # a holder of the token tells when it gives it back
            # Commands come first: what was truncated before rows came must be gone from the cache when they are computed.
            if self._commands:
                return self._carry_out
            if self._closing or self._ended:
                self._ended = True
                return None
            return partial(self._step_and_post, self._queue.next_batch(self._now()))

    def _carry_out(self) -> None:
        command, error = (
            self._commands[0],
            None,
        )  # it stays there until it is done: if the thread dies of it, it is told
        try:
            command.work()
        except Exception as caught:
            if command.done is None:
                raise
            error = caught
        with self._changed:
            self._commands.popleft()
        if command.done is not None:
            self._deliveries.post(partial(command.finish, error))

    def _step_and_post(self, batch: Batch) -> None:
        self._step(batch)
        self._deliveries.post(self._hand_out)

    def _step(self, batch: Batch) -> None:
        """Compute a batch and hand it back to the queue."""
        try:
            outputs = self._runner.step(batch.rows, batch.pauses)
        except Exception as error:
            self._isolate(batch, error)
            return
        with self._changed:
            self._queue.finish(batch, outputs, self._now(), self._runner.found_rows)

    def _isolate(self, batch: Batch, error: Exception) -> None:
        """A step failed: find out whose rows it was, so that the others go on."""
        with self._changed:
            parts = self._queue.split(batch)
        if len(batch.sessions) == 1 and [part.num_rows for part in parts] == [batch.num_rows]:
            self._fail(batch.rows[0].session, error)
            return
        for part in parts:
            self._step(part._replace(began_at=self._now()))

    def _truncate(self, session: str, position: int) -> None:
        try:
            self._runner.truncate(session, position)
        except Exception as error:
            self._fail(session, error)

    def _fail(self, session: str, error: Exception) -> None:
        """Close a session because of an error, and say so."""
        with self._changed:
            owner = self._owners.pop(session, None)
            if owner is None:
                return  # it was closed meanwhile
            self._queue.forget(session)
        self._runner.close(session)
        self._deliveries.post(partial(owner.on_failure, error))

    def _die(self, error: BaseException) -> None:
        """Nothing is computed any more: tell the owners of all sessions, then those who wait for commands."""
        with self._changed:
            self.failure, self._ended = error, True
            commands, owners = list(self._commands), dict(self._owners)
            self._commands.clear()
            self._owners.clear()
            for session in owners:
                self._queue.forget(session)
        told = ShoalError(f"the compute thread died: {type(error).__name__}: {error}")
        told.__cause__ = error
        for owner in owners.values():
            self._deliveries.post(partial(owner.on_failure, told))
        for command in commands:
            if command.done is not None:
                self._deliveries.post(partial(command.finish, told))


class _Owner(NamedTuple):
    """Where a session's outputs go, and its failure."""

    on_output: OnOutput
    on_failure: OnFailure


class _Command(NamedTuple):
    """Something that the thread does between two steps; the future is for the one who waits."""

    work: Callable[[], object]
    done: asyncio.Future[None] | None = None

    def finish(self, error: Exception | None) -> None:
        """In the loop: tell the one who waits."""
        if self.done is None or self.done.done():
            return
        if error is None:
            self.done.set_result(None)
        else:
            self.done.set_exception(error)
