"""The rows that a party produced, kept as bytes until the budget is spent, and the frames they are sent in."""

from __future__ import annotations

from bisect import bisect_right
from typing import NamedTuple

from shoal.protocol.messages import HopTrace, RowsFrame
from shoal.protocol.row_stream import Cursor, Sender

FRAME_ROWS = 64
"""Rows in one frame that is sent; as many are taken by each receiver."""


class RowChunk(NamedTuple):
    """`num_rows` rows from `position` as `data`; the receiver at the end needs those from `needed_from` on."""

    position: int
    num_rows: int
    data: bytes
    needed_from: int
    trace: tuple[HopTrace, ...] = ()

    def reply(self) -> int:
        """How many rows at the end of this chunk the client needs; −1 for all (docs/wire.md, `rows.reply`)."""
        needed = self.position + self.num_rows - max(self.position, self.needed_from)
        return -1 if needed == self.num_rows else max(0, needed)

    def starting_at(self, position: int, row_bytes: int) -> RowChunk:
        """This chunk without its rows below `position`."""
        skip = position - self.position
        return self._replace(position=position, num_rows=self.num_rows - skip, data=self.data[skip * row_bytes :])

    def ending_at(self, position: int, row_bytes: int) -> RowChunk:
        """This chunk without its rows from `position` on."""
        count = position - self.position
        return self._replace(num_rows=count, data=self.data[: count * row_bytes])


class Journal:
    """Chunks of rows and the `Sender` that says which of them there are.

    `budget_rows` bounds the rows kept after they were sent. What was not sent is always kept, unless the party stands by:
    no hop is to get its rows then. The sender's first cursor is the link to the next hop.
    """

    def __init__(self, row_bytes: int, budget_rows: int, sender: Sender | None = None) -> None:
        self.row_bytes = row_bytes
        self.sender = sender or Sender()
        self._standing_by = False
        self._budget_rows = budget_rows
        self._chunks: list[RowChunk] = []

    @property
    def standing_by(self) -> bool:
        """Whether no hop is to get these rows for now."""
        return self._standing_by

    def stand_by(self, standing_by: bool) -> None:
        """Begin to stand by, or end it."""
        self._standing_by = standing_by

    @property
    def unsent(self) -> int:
        """Rows that the next hop has not been sent."""
        return 0 if self._standing_by or not self.sender.cursors else self.sender.cursors[0].unsent

    @property
    def size_bytes(self) -> int:
        """Bytes of the rows that are kept."""
        return self.row_bytes * (self.sender.end - self._chunks[0].position) if self._chunks else 0

    def append(self, chunk: RowChunk) -> None:
        """Keep a chunk, which must follow the last one."""
        if chunk.position != self.sender.end:
            raise ValueError(f"a chunk at {chunk.position} does not follow {self.sender.end}")
        self._chunks.append(chunk)
        self.sender.append(chunk.num_rows)
        if self._standing_by:
            self._evict()

    def rewind(self, epoch: int, position: int) -> None:
        """Forget the rows from `position` on; the stream goes on in a higher epoch."""
        while self._chunks and self._chunks[-1].position >= position:
            self._chunks.pop()
        if self._chunks:
            last = self._chunks[-1]
            self._chunks[-1] = last.ending_at(min(position, last.position + last.num_rows), self.row_bytes)
        self.sender.rewind(epoch, position)

    def clear(self) -> None:
        """Keep no rows any more: the party has ended."""
        self._chunks.clear()
        self.sender.evict(self.sender.end)

    def next_frame(self, cursor: Cursor, elide: bool = False) -> tuple[RowsFrame, bytes] | None:
        """The next rows to send on a link, if any; `elide` leaves out the bytes of rows that the client does not need."""
        position = cursor.ready
        if position is None:
            return None
        index = bisect_right(self._chunks, position, key=lambda chunk: chunk.position) - 1
        chunk = self._chunks[index].starting_at(position, self.row_bytes)
        if chunk.num_rows > FRAME_ROWS:
            chunk = chunk.ending_at(position + FRAME_ROWS, self.row_bytes)
        epoch, reply = self.sender.epoch, chunk.reply()
        after = cursor.sent(chunk.num_rows)
        self._evict()
        elided = chunk.num_rows - reply if elide and reply >= 0 else 0
        rows = RowsFrame(epoch, position, chunk.num_rows, after, reply, elided, chunk.trace)
        return rows, chunk.data[elided * self.row_bytes :]

    def _evict(self) -> None:
        kept_from = self.sender.end - max(self.unsent, self._budget_rows)
        drop = 0
        while drop < len(self._chunks) and self._chunks[drop].position + self._chunks[drop].num_rows <= kept_from:
            drop += 1
        if drop:
            del self._chunks[:drop]
            self.sender.evict(self._chunks[0].position if self._chunks else self.sender.end)
