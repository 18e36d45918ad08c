"""Rows to bytes and back: little-endian, row-major, nothing else."""

from __future__ import annotations

import torch

from shoal.errors import ProtocolError
from shoal.protocol.messages import MAX_HIDDEN_SIZE, MAX_ROWS, RowCodec

_DTYPES: dict[RowCodec, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def row_bytes(codec: RowCodec, hidden_size: int) -> int:
    """Bytes of one row on the wire."""
    return _DTYPES[codec].itemsize * hidden_size


def encode_rows(hidden_states: torch.Tensor, codec: RowCodec = "fp32") -> bytes:
    """Rows [n, hidden] of any float dtype as bytes of the codec."""
    rows, dtype = hidden_states.detach() if hidden_states.requires_grad else hidden_states, _DTYPES[codec]
    if rows.dtype is not dtype or rows.device.type != "cpu":
        rows = rows.to(device="cpu", dtype=dtype)
    if codec == "bf16":  # numpy has no such type
        rows = rows.view(torch.int16)
    return rows.numpy().tobytes()  # row by row, however they lie in memory


def decode_rows(payload: bytes, count: int, hidden_size: int, codec: RowCodec = "fp32") -> torch.Tensor:
    """Bytes as rows [count, hidden] in fp32, a copy that the caller owns.

    Raises ProtocolError when the payload is not exactly `count` rows.
    """
    if not (0 <= count <= MAX_ROWS and 0 < hidden_size <= MAX_HIDDEN_SIZE):
        raise ProtocolError(f"{count} rows of {hidden_size} numbers are outside the wire's limits")
    if len(payload) != count * row_bytes(codec, hidden_size):
        expected = count * row_bytes(codec, hidden_size)
        raise ProtocolError(f"{count} {codec} rows of {hidden_size} numbers take {expected} bytes, not {len(payload)}")
    if count == 0:
        return torch.empty(0, hidden_size)
    rows = torch.frombuffer(bytearray(payload), dtype=_DTYPES[codec]).view(count, hidden_size)
    return rows if codec == "fp32" else rows.to(torch.float32)
