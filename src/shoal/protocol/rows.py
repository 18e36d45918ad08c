"""Rows inside a party: what a frame becomes when it is received, and stays until its output is sent on."""

from __future__ import annotations

from typing import Any, NamedTuple

from shoal.errors import WrongRows
from shoal.protocol.messages import MAX_HOPS, RowCodec, RowsFrame
from shoal.protocol.row_codec import all_finite, row_bytes


class RowForm(NamedTuple):
    """How a session's rows travel."""

    codec: RowCodec
    hidden_size: int

    @property
    def row_bytes(self) -> int:
        """Of one row."""
        return row_bytes(self.codec, self.hidden_size)

    def check(self, rows: RowsFrame, payload: bytes) -> None:
        """Raises WrongRows unless the payload is the rows that the frame says, in numbers that can be computed with."""
        count = rows.count - rows.elided
        if count < 0 or len(payload) != count * self.row_bytes:
            raise WrongRows(f"{count} rows came with {len(payload)} bytes")
        if not all_finite(payload, self.codec):
            text = f"rows {rows.position}:{rows.position + rows.count} hold numbers that are not finite"
            raise WrongRows(text, relayed=True)

    def check_for_hop(self, rows: RowsFrame, payload: bytes) -> None:
        """The same for rows that a hop is to compute: it needs them all, and its trace must have room in their frame."""
        if rows.elided:
            raise WrongRows(f"{rows.count} rows came with {rows.elided} of them left out")
        if len(rows.trace) >= MAX_HOPS:
            raise WrongRows(f"rows have come through {len(rows.trace)} hops; a session has at most {MAX_HOPS}")
        self.check(rows, payload)


class Rows(NamedTuple):
    """Consecutive rows of a session from `position` on: those of one frame, or a part of them; inputs, later outputs.

    `hidden_states` is opaque here: anything with a length, one for each row, and slices, such as a tensor [n, hidden].
    `frame` is what they came in, received at `received_at` of the party's wall clock. `enqueued_at` is in seconds of the
    clock of the queue that they wait in.
    """

    session: str
    position: int
    hidden_states: Any
    frame: RowsFrame | None = None
    received_at: float = 0.0
    enqueued_at: float = 0.0

    @property
    def num_rows(self) -> int:
        """How many rows these are."""
        return len(self.hidden_states)

    @property
    def stop(self) -> int:
        """The position after the last row."""
        return self.position + len(self.hidden_states)

    @property
    def needed_from(self) -> int:
        """The first position of the frame that the client needs an output of."""
        return self.position if self.frame is None else self.frame.needed_from

    def starting_at(self, position: int) -> Rows:
        """These rows without those below `position`."""
        return self._replace(position=position, hidden_states=self.hidden_states[position - self.position :])

    def ending_at(self, position: int) -> Rows:
        """These rows without those from `position` on."""
        return self._replace(hidden_states=self.hidden_states[: position - self.position])
