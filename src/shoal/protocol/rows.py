"""Rows inside a party: what a frame becomes when it is received, and stays until its output is sent on."""

from __future__ import annotations

from typing import Any, NamedTuple

from shoal.protocol.messages import RowsFrame


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
