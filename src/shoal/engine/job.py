"""What a compute thread has to do: a session's part in a step, or an order between two steps."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NamedTuple

from shoal.engine.runner import Rows
from shoal.engine.session_rows import Piece, Stream


class Order(NamedTuple):
    """Something that the thread does between two steps; the future is for whoever waits."""

    work: Callable[[], object]
    done: asyncio.Future[None] | None = None

    def finish(self, error: Exception | None) -> None:
        """In the loop: tell whoever waits."""
        if self.done is None or self.done.done():
            return
        if error is None:
            self.done.set_result(None)
        else:
            self.done.set_exception(error)


class Job(NamedTuple):
    """One session's part in a step, after which its rows have gone through `blocks`; `share` is what this step does of all, and
    `spent_s` what steps took so far."""

    stream: Stream
    pieces: list[Piece]
    rows: Rows
    blocks: int = 0
    share: float = 1.0
    spent_s: float = 0.0

    @property
    def num_rows(self) -> int:
        """Its rows."""
        return self.rows.hidden_states.shape[0]

    def onwards(self, blocks: int, depth: int) -> Job:
        """Its next step, through so many more of all blocks."""
        upto = min(self.blocks + blocks, depth)
        rows = self.rows._replace(upto=upto if upto < depth else None)
        return self._replace(rows=rows, blocks=upto, share=(upto - self.blocks) / depth)

    def whole(self) -> Job:
        """A step from the first block to the last."""
        return self._replace(rows=self.rows._replace(upto=None), share=1.0)

    def remaining(self) -> Job | None:
        """The job without rows that were taken back, which begins anew if there are any; None when nothing is left."""
        num_rows = max(piece.stop for piece in self.pieces) - self.rows.position
        if num_rows == self.num_rows:
            return self
        rows = self.rows._replace(hidden_states=self.rows.hidden_states[:num_rows])
        return self._replace(rows=rows, blocks=0) if num_rows > 0 else None
