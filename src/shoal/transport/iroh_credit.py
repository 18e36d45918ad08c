"""Credit inside an iroh stream (docs/decisions/0004-transports.md).

QUIC's own flow control counts bytes alone, and iroh ends a whole connection when one stream holds some 2,000 unread pieces.
So bytes travel in records, and the sender of records keeps at most WINDOW_RECORDS and WINDOW_BYTES unread.
A record: data length (u32, little-endian), credit (u32, little-endian), data. Credit is how many bytes of data the
sender of the record has read from its own inbox since its last record. The receiver reads the stream all the time, so
pure credit is never in the way.
"""

from __future__ import annotations

import struct
from collections import deque

from shoal.errors import ProtocolError

WINDOW_BYTES = 1024 * 1024
"""Unread bytes of data in one direction of a channel."""

WINDOW_RECORDS = 256
"""Unread records with data in one direction of a channel."""

MAX_RECORD_BYTES = 256 * 1024

REPORT_BYTES = 128 * 1024
"""Read bytes at which credit is worth a record of its own."""

REPORT_RECORDS = 64
"""The same in records. Both leave the sender room for a full record once everything is read, so it never stalls."""

_HEADER = struct.Struct("<II")
HEADER_BYTES = _HEADER.size


def encode_record(data: bytes | bytearray | memoryview, credit: int) -> bytes:
    """One record as bytes."""
    return b"".join((_HEADER.pack(len(data), credit), data))


class SendWindow:
    """What this side has sent and the other side has not read."""

    def __init__(self) -> None:
        self._sent = 0
        self._read = 0
        self._ends: deque[int] = deque()

    def allowed(self, pending_bytes: int) -> int:
        """How many of the pending bytes the next record may carry; 0 means wait for credit."""
        size = min(pending_bytes, MAX_RECORD_BYTES)
        if len(self._ends) >= WINDOW_RECORDS or self._sent - self._read + size > WINDOW_BYTES:
            return 0
        return size

    def sent(self, size_bytes: int) -> None:
        """A record with so much data is on its way."""
        if size_bytes:
            self._sent += size_bytes
            self._ends.append(self._sent)

    @property
    def progress(self) -> int:
        """A number that grows with everything that is sent and everything that the other side reads."""
        return self._sent + self._read

    def credit(self, size_bytes: int) -> None:
        """The other side has read so much more. Raises ProtocolError when it was never sent."""
        if size_bytes > self._sent - self._read:
            raise ProtocolError(f"credit for {size_bytes} bytes where {self._sent - self._read} are unread")
        self._read += size_bytes
        while self._ends and self._ends[0] <= self._read:
            self._ends.popleft()


class ReadCredit:
    """What this side has read and not yet told the other side."""

    def __init__(self) -> None:
        self._arrived = 0
        self._read = 0
        self._ends: deque[int] = deque()
        self._bytes = 0
        self._records = 0

    def arrived(self, sizes_bytes: list[int]) -> None:
        """Records with so much data each are coming in."""
        for size in sizes_bytes:
            self._arrived += size
            self._ends.append(self._arrived)

    def read(self, size_bytes: int) -> None:
        """The reader took so much."""
        self._read += size_bytes
        self._bytes += size_bytes
        while self._ends and self._ends[0] <= self._read:
            self._ends.popleft()
            self._records += 1

    @property
    def unread_records(self) -> int:
        """Records with data that are here and not read."""
        return len(self._ends)

    @property
    def due(self) -> bool:
        """Whether the other side may be waiting for it."""
        return self._bytes >= REPORT_BYTES or self._records >= REPORT_RECORDS

    def take(self) -> int:
        """The credit for the record that is about to leave."""
        credit, self._bytes, self._records = self._bytes, 0, 0
        return credit


class RecordDecoder:
    """Cuts records out of a stream that arrives in pieces of any size."""

    def __init__(self) -> None:
        self._header = b""
        self._missing = 0

    @property
    def between_records(self) -> bool:
        """Whether the stream may end here."""
        return not self._header and not self._missing

    def feed(self, piece: bytes) -> tuple[bytes, int, list[int]]:
        """More of the stream → its data, its credit and the sizes of the records with data that began.

        Raises ProtocolError for a record that is too long.
        """
        data: list[bytes] = []
        sizes: list[int] = []
        credit = at = 0
        while at < len(piece):
            if self._missing:
                part = piece[at : at + self._missing]
                data.append(part)
                self._missing -= len(part)
                at += len(part)
                continue
            part = piece[at : at + HEADER_BYTES - len(self._header)]
            self._header += part
            at += len(part)
            if len(self._header) == HEADER_BYTES:
                self._missing, more = _HEADER.unpack(self._header)
                if self._missing > MAX_RECORD_BYTES:
                    raise ProtocolError(f"a record of {self._missing} bytes is over {MAX_RECORD_BYTES}")
                self._header, credit = b"", credit + more
                if self._missing:
                    sizes.append(self._missing)
        return b"".join(data), credit, sizes
