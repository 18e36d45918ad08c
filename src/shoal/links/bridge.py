"""A link that goes through the client, because two hops cannot reach each other."""

from __future__ import annotations

from shoal.errors import ProtocolError
from shoal.links.row_log import RowLog
from shoal.links.row_receiver import RowReceiver
from shoal.protocol.journal import Journal, RowChunk
from shoal.protocol.messages import MAX_POSITION, RowsFrame
from shoal.protocol.row_stream import Receiver, Sender


class Bridge:
    """Carries rows from one hop to the next; begins where the next one is. It is the sink of its own receiver."""

    def __init__(self, row_bytes: int, epoch: int, position: int) -> None:
        self.row_receiver = RowReceiver(Receiver(epoch, position), self)
        self.log = RowLog(Journal(row_bytes, MAX_POSITION, Sender(epoch, position)))
        self._row_bytes = row_bytes

    @property
    def full(self) -> bool:
        """RowSink: whatever a session may hold is carried."""
        return False

    def check(self, rows: RowsFrame, payload: bytes) -> None:
        """RowSink: the form of a frame; what it holds is for the next hop to judge."""
        if rows.elided or len(payload) != rows.count * self._row_bytes:
            raise ProtocolError(f"{rows.count} rows came with {len(payload)} bytes")

    def truncate(self, position: int) -> None:
        """RowSink: rows from `position` on are void."""
        self.log.rewind(self.row_receiver.receiver.epoch, position)

    def take(self, rows: RowsFrame, payload: bytes, skip: int) -> None:
        """RowSink: rows to hand on."""
        data = payload[skip * self._row_bytes :]
        self.log.append(RowChunk(rows.position + skip, rows.count - skip, data, rows.needed_from, rows.trace))
