"""Rows to bytes and back: little-endian, row-major, nothing else. numpy alone, so that a program that only asks starts fast."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.errors import ProtocolError
from shoal.protocol.messages import MAX_HIDDEN_SIZE, MAX_ROWS, RowCodec

RowArray = npt.NDArray[Any]
"""Rows [n, hidden] as they are stored on the wire."""

STORED: dict[RowCodec, np.dtype[Any]] = {"fp32": np.dtype("<f4"), "fp16": np.dtype("<f2"), "bf16": np.dtype("<i2")}
"""How a number is stored. numpy has no bf16: it is the upper half of an fp32 number's bits, as an integer."""


_EXPONENTS: dict[RowCodec, tuple[str, int]] = {"fp16": ("<u2", 0x7C00), "bf16": ("<u2", 0x7F80)}
"""The bits of an exponent: all of them are set in what is not finite."""


def row_bytes(codec: RowCodec, hidden_size: int) -> int:
    """Bytes of one row on the wire."""
    return STORED[codec].itemsize * hidden_size


def encode_rows(rows: RowArray) -> bytes:
    """Rows [n, hidden], stored as their codec has it, as bytes: row by row, however they lie in memory."""
    return rows.tobytes()


def all_finite(payload: bytes, codec: RowCodec) -> bool:
    """Whether every number in these bytes, which are whole rows, is finite."""
    if not payload:
        return True
    if codec == "fp32":
        return bool(np.isfinite(np.frombuffer(payload, STORED[codec])).all())
    stored, exponent = _EXPONENTS[codec]  # several times faster than numpy's own answer for fp16; it has no bf16
    return int(np.bitwise_and(np.frombuffer(payload, stored), exponent).max()) != exponent


def decode_rows(payload: bytes, count: int, hidden_size: int, codec: RowCodec = "fp32") -> RowArray:
    """Bytes as rows [count, hidden], stored as the codec has it: a writable copy that the caller owns.

    Raises ProtocolError when the payload is not exactly `count` rows.
    """
    if not (0 <= count <= MAX_ROWS and 0 < hidden_size <= MAX_HIDDEN_SIZE):
        raise ProtocolError(f"{count} rows of {hidden_size} numbers are outside the wire's limits")
    if len(payload) != count * row_bytes(codec, hidden_size):
        expected = count * row_bytes(codec, hidden_size)
        raise ProtocolError(f"{count} {codec} rows of {hidden_size} numbers take {expected} bytes, not {len(payload)}")
    return np.frombuffer(bytearray(payload), STORED[codec]).reshape(count, hidden_size)
