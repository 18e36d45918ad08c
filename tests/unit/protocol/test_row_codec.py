"""Rows to bytes and back."""

from __future__ import annotations

import pytest
import torch

from shoal.errors import ProtocolError
from shoal.protocol.messages import MAX_ROWS, RowCodec
from shoal.protocol.row_codec import decode_rows, encode_rows, row_bytes

CODECS: tuple[RowCodec, ...] = ("fp32", "fp16", "bf16")


@pytest.mark.parametrize("codec", CODECS)
def test_round_trip(codec: RowCodec) -> None:
    """What the codec can hold comes back as it was, also from a view that is not contiguous."""
    rows = torch.arange(-8, 8, dtype=torch.float32).view(8, 2).T
    data = encode_rows(rows, codec)
    assert len(data) == 2 * row_bytes(codec, 8)
    assert torch.equal(decode_rows(data, 2, 8, codec), rows)


def test_fp32_keeps_every_bit() -> None:
    """Not-a-numbers, infinities, subnormals and signed zeros included."""
    bits = torch.tensor([[0x7FC00001, 0x7F800000, 1, -0x80000000, -1]], dtype=torch.int32)
    again = decode_rows(encode_rows(bits.view(torch.float32)), 1, 5)
    assert torch.equal(again.view(torch.int32), bits)


@pytest.mark.parametrize(("count", "hidden"), [(3, 4), (1, 4), (-1, 4), (2, 0), (MAX_ROWS + 1, 4), (2, 1 << 30)])
def test_lying_sizes(count: int, hidden: int) -> None:
    """A payload that is not what its header says is the peer's fault."""
    with pytest.raises(ProtocolError):
        decode_rows(bytes(2 * 4 * 4), count, hidden)


def test_no_rows() -> None:
    """A frame whose rows were all left out has an empty payload."""
    assert decode_rows(b"", 0, 48).shape == (0, 48)
