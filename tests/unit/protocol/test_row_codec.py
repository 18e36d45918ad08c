"""Rows as bytes, and back."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from shoal.errors import ProtocolError
from shoal.protocol.messages import MAX_ROWS, RowCodec
from shoal.protocol.row_codec import STORED, all_finite, decode_rows, encode_rows, row_bytes


@pytest.mark.parametrize("codec", STORED)
def test_round_trip(codec: RowCodec) -> None:
    """Every bit comes back, also from a view that is not contiguous, in memory that the caller may write to."""
    rows = np.arange(-8, 8).reshape(8, 2).T.astype(STORED[codec])
    data = encode_rows(rows)
    assert len(data) == 2 * row_bytes(codec, 8)
    again = decode_rows(data, 2, 8, codec)
    assert again.dtype == STORED[codec]
    assert np.array_equal(again, rows)
    assert again.flags.writeable


@pytest.mark.parametrize(("count", "hidden"), [(3, 4), (1, 4), (-1, 4), (2, 0), (MAX_ROWS + 1, 4), (2, 1 << 30)])
def test_lying_sizes(count: int, hidden: int) -> None:
    """A payload that is not what its header says is the peer's fault."""
    with pytest.raises(ProtocolError):
        decode_rows(bytes(2 * 4 * 4), count, hidden)


@pytest.mark.parametrize("codec", STORED)
def test_no_rows(codec: RowCodec) -> None:
    """A frame whose rows were all left out has an empty payload."""
    assert decode_rows(b"", 0, 48, codec).shape == (0, 48)


NOT_FINITE = {"fp32": (0x7F800000, 0xFF800000, 0x7FC00000, 0x7F800001), "fp16": (0x7C00, 0xFC00, 0x7E00, 0x7C01),
              "bf16": (0x7F80, 0xFF80, 0x7FC0, 0x7F81)}  # fmt: skip
LARGEST = {"fp32": 0xFF7FFFFF, "fp16": 0xFBFF, "bf16": 0xFF7F}


@pytest.mark.parametrize("codec", STORED)
def test_what_is_not_finite_is_found(codec: RowCodec) -> None:
    """Infinities and NaNs of either sign, quiet and signalling, anywhere; the largest and the smallest numbers are finite."""
    bits = np.zeros(33, f"<u{row_bytes(codec, 1)}")
    bits[:2] = LARGEST[codec], 1
    assert all_finite(bits.tobytes(), codec)
    assert all_finite(b"", codec)
    for value in NOT_FINITE[codec]:
        for at in (0, 16, 32):
            wrong = bits.copy()
            wrong[at] = value
            assert not all_finite(wrong.tobytes(), codec)


def test_the_wire_needs_no_torch() -> None:
    """What `shoal status` and the swarm import loads no torch."""
    packages = (
        "protocol.row_codec",
        "swarm.directory.exchange",
        "links.link",
        "links.row_log",
        "transport.frame_channel",
    )
    lines = "; ".join(f"import shoal.{name}" for name in packages)
    subprocess.run([sys.executable, "-c", f"{lines}; import sys; assert 'torch' not in sys.modules"], check=True)
