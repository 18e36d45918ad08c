"""The model's head for many sessions: rows that wait at the same time are computed in one call.

Row-exact arithmetic makes that invisible: a row's logits are the same in any company. Reading the head's weights is most of
its cost, so that eight rows take little longer than one. One row alone that takes a moment is computed in the event loop:
waking a thread and being woken by it would be a tenth of it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor

from shoal.clock import SYSTEM_CLOCK, Clock
from shoal.engine.batch_delay import BatchDelay
from shoal.model.nn.block import HEAD_ROWS

Logits = Callable[[Tensor], Tensor]
"""Rows [n, hidden] → logits [n, vocab], row-exact."""

Pick = Callable[[Tensor], int]
"""Logits [vocab] → the token."""


class BatchedHead:
    """Computes in `thread`, one batch at a time; what has come together while the thread was busy goes together.

    Everything is called from one event loop. `batch_rows` counts the sizes of the batches. `free` says whether `logits` may be
    called in the loop too: it does not care which thread it runs in, and `thread` has nothing else to do.
    """

    def __init__(
        self,
        logits: Logits,
        thread: ThreadPoolExecutor,
        clock: Clock = SYSTEM_CLOCK,
        free: Callable[[], bool] = lambda: False,
    ) -> None:
        self.batch_rows: Counter[int] = Counter()
        self._free = free
        self._logits = logits
        self._thread = thread
        self._clock = clock
        self._waiting: list[_Wish] = []
        self._busy = False
        self._since: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._delay = BatchDelay()

    async def choose(self, row: Tensor, pick: Pick, whose: Hashable = None) -> int:
        """The token that `pick` takes from the logits of a row [1, hidden]; raises what it raises.

        `whose` is the generation that comes again and again, so that others can wait a moment for it.
        """
        self._delay.arrived(whose, self._clock.monotonic())
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Wish(whose, row, pick, answer))
        self._start()
        return await answer

    def forget(self, whose: Hashable) -> None:
        """This generation comes no more."""
        self._delay.forget(whose)

    def _start(self) -> None:
        """Begin a batch, unless one is under way or others are due in a moment."""
        self._waiting = [wish for wish in self._waiting if not wish.answer.done()]
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._busy or not self._waiting:
            return
        now = self._clock.monotonic()
        self._since = now if self._since is None else self._since
        hold_s = self._delay.hold_s(self._since, now)
        loop = asyncio.get_running_loop()
        if hold_s > 0:
            self._timer = loop.call_later(hold_s, self._start)
            return
        batch, self._waiting = self._waiting[:HEAD_ROWS], self._waiting[HEAD_ROWS:]
        self._since = None
        self.batch_rows[len(batch)] += 1
        if len(batch) == 1 and self._delay.is_short_and_alone(now) and self._free():
            self._settle(batch, self._compute(batch), now)
            return
        working = loop.run_in_executor(self._thread, self._compute, batch)
        self._busy = True
        working.add_done_callback(lambda done: self._finish(batch, done, now))

    def _compute(self, batch: Sequence[_Wish]) -> list[int | Exception]:
        try:
            with torch.inference_mode():
                logits = self._logits(torch.cat([wish.row for wish in batch]))
                return [_picked(wish.pick, row) for wish, row in zip(batch, logits, strict=True)]
        except Exception as error:
            return [error] * len(batch)

    def _finish(self, batch: Sequence[_Wish], done: asyncio.Future[list[int | Exception]], began_at: float) -> None:
        self._busy = False
        self._settle(batch, [asyncio.CancelledError()] * len(batch) if done.cancelled() else done.result(), began_at)
        self._start()

    def _settle(self, batch: Sequence[_Wish], results: Sequence[int | BaseException], began_at: float) -> None:
        now = self._clock.monotonic()
        waited_for = [wish.whose for wish in batch if wish.whose is not None and not wish.answer.done()]
        self._delay.left(waited_for, now - began_at, now)
        for wish, result in zip(batch, results, strict=True):
            if wish.answer.done():
                continue  # whoever asked has gone
            if isinstance(result, BaseException):
                wish.answer.set_exception(result)
            else:
                wish.answer.set_result(result)


class _Wish(NamedTuple):
    """A row that waits for its token."""

    whose: Hashable
    row: Tensor
    pick: Pick
    answer: asyncio.Future[int]


def _picked(pick: Pick, logits: Tensor) -> int | Exception:
    try:
        return pick(logits)
    except Exception as error:  # its own affair, not the others'
        return error
