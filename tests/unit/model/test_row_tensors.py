"""Rows on the wire as tensors."""

from __future__ import annotations

import pytest
import torch

from shoal.errors import ProtocolError
from shoal.model.row_tensors import decode_tensor, encode_tensor
from shoal.protocol.messages import RowCodec
from shoal.protocol.row_codec import row_bytes

CODECS: tuple[RowCodec, ...] = ("fp32", "fp16", "bf16")


@pytest.mark.parametrize("codec", CODECS)
def test_round_trip(codec: RowCodec) -> None:
    """What the codec can hold comes back as it was, also from a view that is not contiguous or wants a gradient."""
    rows = torch.arange(-8, 8, dtype=torch.float32).view(8, 2).T.requires_grad_()
    data = encode_tensor(rows, codec)
    assert len(data) == 2 * row_bytes(codec, 8)
    assert torch.equal(decode_tensor(data, 2, 8, codec), rows)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rows_of_any_float_dtype(dtype: torch.dtype) -> None:
    """Rows that were computed in 16 bits travel as they are, and exactly in 32."""
    rows = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert torch.equal(decode_tensor(encode_tensor(rows), 3, 5), rows.to(torch.float32))
    codec: RowCodec = "fp16" if dtype is torch.float16 else "bf16"
    assert torch.equal(decode_tensor(encode_tensor(rows, codec), 3, 5, codec), rows.to(torch.float32))


def test_fp32_keeps_every_bit() -> None:
    """Not-a-numbers, infinities, subnormals and signed zeros included."""
    bits = torch.tensor([[0x7FC00001, 0x7F800000, 1, -0x80000000, -1]], dtype=torch.int32)
    again = decode_tensor(encode_tensor(bits.view(torch.float32)), 1, 5)
    assert torch.equal(again.view(torch.int32), bits)


def test_sizes_are_checked() -> None:
    """A payload that is not what its header says is the peer's fault; no rows are none."""
    with pytest.raises(ProtocolError):
        decode_tensor(bytes(8), 1, 4)
    assert decode_tensor(b"", 0, 48).shape == (0, 48)
