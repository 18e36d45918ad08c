"""One session's rows at a worker: those that wait, and those in a step or on their way back."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from shoal.types import Span


class StepOutput(NamedTuple):
    """Rows that were computed: hidden states [n, hidden] at `position`, all from the chunk submitted with `tag`.

    They waited `queue_s` seconds for a step that took `compute_s` and held `batch_rows` rows of `batch_sessions`.
    """

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


class Chunk:
    """Submitted rows that wait: [start, stop) of a session's stream."""

    def __init__(self, start: int, rows: Tensor, tag: object) -> None:
        self.start = start
        self.stop = start + rows.shape[0]
        self.rows = rows
        self.tag = tag
        self.queued_at = time.perf_counter()


class Piece:
    """Rows of one chunk that are in a step or on their way to the loop; those from `stop` on are void."""

    def __init__(self, start: int, rows: Tensor, chunk: Chunk) -> None:
        self.start = start
        self.stop = start + rows.shape[0]
        self.rows = rows
        self.tag = chunk.tag
        self.queued_at = chunk.queued_at


class Stream:
    """One session's rows at this worker."""

    def __init__(self, client: str, span: Span, on_output: OnOutput, on_failure: OnFailure) -> None:
        self.client = client
        self.span = span
        self.on_output = on_output
        self.on_failure = on_failure
        self.position = 0
        self.chunks: deque[Chunk] = deque()
        self.pieces: list[Piece] = []

    def take(self, num_rows: int) -> list[Piece]:
        """The next rows, off the queue."""
        pieces = []
        while num_rows:
            chunk = self.chunks[0]
            count = min(chunk.stop - chunk.start, num_rows)
            num_rows -= count
            if count == chunk.stop - chunk.start:
                pieces.append(Piece(chunk.start, chunk.rows, chunk))
                self.chunks.popleft()
            else:
                pieces.append(Piece(chunk.start, chunk.rows[:count], chunk))
                chunk.rows, chunk.start = chunk.rows[count:], chunk.start + count
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
        """Rows that wait."""
        return sum(chunk.stop - chunk.start for chunk in self.chunks)
