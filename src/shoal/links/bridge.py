"""A link that goes through the client, because two hops cannot reach each other."""

from __future__ import annotations

from collections.abc import Callable

from shoal.errors import WrongRows
from shoal.links.row_log import RowLog
from shoal.links.row_receiver import RowReceiver
from shoal.protocol.journal import Journal, RowChunk
from shoal.protocol.messages import MAX_POSITION, ResumeFrom, RowsFrame
from shoal.protocol.row_stream import Receiver, Sender


def _unchecked_rows(rows: RowsFrame, payload: bytes) -> None:
    """For the next hop to judge."""


def _unchecked_from(message: ResumeFrom) -> None:
    """Likewise."""


class Bridge:
    """Carries rows from one hop to the next; begins where the next one is. It is the sink of its own receiver.

    `check` and `check_from` raise WrongRows for what the first hop must not send.
    """

    def __init__(
        self,
        row_bytes: int,
        epoch: int,
        position: int,
        check: Callable[[RowsFrame, bytes], None] = _unchecked_rows,
        check_from: Callable[[ResumeFrom], None] = _unchecked_from,
    ) -> None:
        self._check = check
        self.row_receiver = RowReceiver(Receiver(epoch, position), self, check_from)
        self.log = RowLog(Journal(row_bytes, MAX_POSITION, Sender(epoch, position)))
        self._row_bytes = row_bytes

    @property
    def full(self) -> bool:
        """RowSink: whatever a session may hold is carried."""
        return False

    def check(self, rows: RowsFrame, payload: bytes) -> None:
        """RowSink: the form of a frame, and what else was to be checked."""
        self._check(rows, payload)
        if rows.elided or len(payload) != rows.count * self._row_bytes:
            raise WrongRows(f"{rows.count} rows came with {len(payload)} bytes")

    def truncate(self, position: int) -> None:
        """RowSink: rows from `position` on are void."""
        self.log.rewind(self.row_receiver.receiver.epoch, position)

    def take(self, rows: RowsFrame, payload: bytes, skip: int) -> None:
        """RowSink: rows to hand on."""
        data = payload[skip * self._row_bytes :]
        self.log.append(RowChunk(rows.position + skip, rows.count - skip, data, rows.needed_from, rows.trace))
