"""Rows on the wire as tensors: the rounding to a codec and back, which torch does many times faster than numpy."""

from __future__ import annotations

import torch

from shoal.protocol.messages import RowCodec
from shoal.protocol.row_codec import decode_rows, encode_rows

_DTYPES: dict[RowCodec, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def encode_tensor(hidden_states: torch.Tensor, codec: RowCodec = "fp32") -> bytes:
    """Rows [n, hidden] of any float dtype, on any device, as bytes of the codec."""
    rows, dtype = hidden_states.detach() if hidden_states.requires_grad else hidden_states, _DTYPES[codec]
    if rows.dtype is not dtype or rows.device.type != "cpu":
        rows = rows.to(device="cpu", dtype=dtype)
    if codec == "bf16":  # numpy has no such type
        rows = rows.view(torch.int16)
    return encode_rows(rows.numpy())


def decode_tensor(payload: bytes, count: int, hidden_size: int, codec: RowCodec = "fp32") -> torch.Tensor:
    """Bytes as rows [count, hidden] in fp32, a copy that the caller owns.

    Raises ProtocolError when the payload is not exactly `count` rows.
    """
    rows = torch.from_numpy(decode_rows(payload, count, hidden_size, codec))
    if codec == "bf16":
        rows = rows.view(torch.bfloat16)
    return rows if codec == "fp32" else rows.to(torch.float32)
