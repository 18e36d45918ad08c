"""Frames: a fixed prefix, a msgpack header, a raw payload. Specified in docs/wire.md."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable

from shoal.errors import CorruptFrame, ProtocolError

MAGIC = b"SHOL"
VERSION = 1
PREFIX_BYTES = 24

AWAITED_BYTES = 4096
"""A payload up to here is waited for before its header is looked at: the hash of both tells damage from a mistake."""

MAX_HEADER_BYTES = 64 * 1024
MAX_PAYLOAD_BYTES = 16 * 1024 * 1024

_PREFIX = struct.Struct("<4sB3sII8s")
_RESERVED = b"\0\0\0"


def _hash(header: bytes | memoryview, payload: bytes | memoryview) -> bytes:
    digest = hashlib.blake2b(header, digest_size=8)
    digest.update(payload)
    return digest.digest()


def encode_frame(header: bytes, payload: bytes | bytearray | memoryview = b"") -> bytearray:
    """One frame as contiguous bytes, so that it can be written in one call.

    Raises ValueError for a header or payload beyond the limits: a mistake of this program.
    """
    size = len(payload)
    if not 0 < len(header) <= MAX_HEADER_BYTES or size > MAX_PAYLOAD_BYTES:
        raise ValueError(f"a frame of {len(header)} + {size} bytes is outside the wire's limits")
    frame = bytearray(_PREFIX.pack(MAGIC, VERSION, _RESERVED, len(header), size, _hash(header, memoryview(payload))))
    frame += header
    frame += payload
    return frame


class FrameDecoder:
    """Cuts a byte stream into frames; knows no I/O. It holds what it was fed and has not yet given out as frames.

    The limits may be lowered below the wire's where a peer has no business sending more.
    """

    def __init__(self, max_payload_bytes: int = MAX_PAYLOAD_BYTES, max_header_bytes: int = MAX_HEADER_BYTES) -> None:
        self._max_payload_bytes = max_payload_bytes
        self.max_header_bytes = max_header_bytes
        self._buffer: bytes | bytearray = b""
        self._start = 0

    def allow_payload(self, max_payload_bytes: int) -> None:
        """Change the largest payload of the frames from here on."""
        self._max_payload_bytes = min(max_payload_bytes, MAX_PAYLOAD_BYTES)

    def allow_header(self, max_header_bytes: int) -> None:
        """Change the largest header of the frames from here on."""
        self.max_header_bytes = min(max_header_bytes, MAX_HEADER_BYTES)

    def feed(self, data: bytes) -> None:
        """Take bytes as they came. Where nothing waits before them they are not copied."""
        if self._start == len(self._buffer):
            self._buffer, self._start = data, 0
            return
        if isinstance(self._buffer, bytes):
            self._buffer, self._start = bytearray(memoryview(self._buffer)[self._start :]), 0
        elif self._start:
            del self._buffer[: self._start]
            self._start = 0
        self._buffer += data

    @property
    def pending_bytes(self) -> int:
        """Bytes held that are not part of a frame given out."""
        return len(self._buffer) - self._start

    def take_rest(self) -> bytes:
        """The bytes that are not part of a frame given out, for another reader of the stream."""
        rest = bytes(self._buffer[self._start :])
        self._buffer, self._start = b"", 0
        return rest

    def next(self, follows: Callable[[bytes], int] | None = None) -> tuple[bytes, bytes] | None:
        """The next frame's header and payload, or None while it is incomplete.

        `follows` says how large a payload may follow a header. It is asked as soon as the header of a large frame is here, and
        may raise. Raises ProtocolError as soon as the prefix breaks the specification or promises more than may follow,
        CorruptFrame when the hash is wrong.
        """
        if len(self._buffer) - self._start < PREFIX_BYTES:
            return None
        header_bytes, payload_bytes, expected = self._prefix()
        start = self._start + PREFIX_BYTES
        middle = start + header_bytes
        stop = middle + payload_bytes
        if len(self._buffer) < stop:
            if follows is not None and payload_bytes > AWAITED_BYTES and len(self._buffer) >= middle:
                self._check_payload(payload_bytes, follows(self._cut(start, middle)))
            return None
        header, payload = self._cut(start, middle), self._cut(middle, stop)
        self._start = stop
        if _hash(header, payload) != expected:
            raise CorruptFrame("a frame's hash is wrong: bytes changed on the way")
        return header, payload

    def _cut(self, start: int, stop: int) -> bytes:
        if isinstance(self._buffer, bytes):
            return self._buffer[start:stop]
        with memoryview(self._buffer) as view:  # one copy, not two
            return bytes(view[start:stop])

    def _prefix(self) -> tuple[int, int, bytes]:
        magic, version, reserved, header_bytes, payload_bytes, expected = _PREFIX.unpack_from(self._buffer, self._start)
        if magic != MAGIC:
            raise ProtocolError(f"a frame starts with {magic!r}, not {MAGIC!r}")
        if version != VERSION:
            raise ProtocolError(f"the peer speaks version {version} of the wire, this side version {VERSION}")
        if reserved != _RESERVED:
            raise ProtocolError("a frame's reserved bytes are not zero")
        if not 0 < header_bytes <= self.max_header_bytes:
            raise ProtocolError(f"a header of {header_bytes} bytes (1 to {self.max_header_bytes} are allowed)")
        self._check_payload(payload_bytes, self._max_payload_bytes)
        return header_bytes, payload_bytes, expected

    @staticmethod
    def _check_payload(payload_bytes: int, allowed: int) -> None:
        if payload_bytes > allowed:
            raise ProtocolError(f"a payload of {payload_bytes} bytes (at most {allowed} are allowed here)")
