"""GGUF headers byte by byte: honest ones are read, lying ones refused before anything is allocated."""

from __future__ import annotations

import struct

import pytest

from shoal.errors import CheckpointError
from shoal.model.weights.gguf_header import KEPT_ELEMENTS, GgufTensor, read_header, tensor_bytes

SIZES = {0: (1, 4), 2: (32, 18)}
"""F32 and Q4_0."""


class Bytes:
    """A file in memory."""

    name = "some.gguf"

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)
        self.bytes_read = 0

    def read(self, offset: int, length: int) -> bytearray:
        """ByteSource."""
        self.bytes_read += length
        return bytearray(self._data[offset : offset + length])


def text(value: str) -> bytes:
    """A string."""
    return struct.pack("<Q", len(value)) + value.encode()


def info(name: str, shape: tuple[int, ...] = (4,), kind: int = 0, offset: int = 0) -> bytes:
    """A tensor's description, its fastest dimension first."""
    sizes = b"".join(struct.pack("<Q", size) for size in shape[::-1])
    return text(name) + struct.pack("<I", len(shape)) + sizes + struct.pack("<IQ", kind, offset)


def header(*tensors: bytes, fields: tuple[bytes, ...] = (), version: int = 3, data: int = 64) -> Bytes:
    """A file with zeros for data."""
    start = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(fields)) + b"".join(fields) + b"".join(tensors)
    return Bytes(start + bytes(-len(start) % 32) + bytes(data))


def test_metadata_and_tensors() -> None:
    """Numbers, strings, arrays; shapes slowest first; offsets from the aligned end of the header."""
    fields = (
        text("a.b") + struct.pack("<Ii", 5, -3),
        text("name") + struct.pack("<I", 8) + text("Tiny"),
        text("list") + struct.pack("<IIQ", 9, 4, 2) + struct.pack("<II", 7, 8),
    )
    found = read_header(header(info("x", (2, 4)), info("y", offset=32), fields=fields), SIZES)
    assert found.metadata == {"a.b": -3, "name": "Tiny", "list": [7, 8]}
    assert found.tensors["x"].shape == (2, 4)
    assert found.tensors["x"].offset % 32 == 0
    assert found.tensors["y"].offset == found.tensors["x"].offset + 32


def test_long_arrays_are_passed_over() -> None:
    """A vocabulary is not needed here."""
    long = text("tokens") + struct.pack("<IIQ", 9, 0, KEPT_ELEMENTS + 1) + bytes(KEPT_ELEMENTS + 1)
    kept = text("few") + struct.pack("<IIQ", 9, 0, KEPT_ELEMENTS) + bytes(KEPT_ELEMENTS)
    found = read_header(header(info("x"), fields=(long, kept)), SIZES).metadata
    assert found["tokens"] == []
    assert len(found["few"]) == KEPT_ELEMENTS


def test_a_tensors_bytes() -> None:
    """By whole blocks of its type."""
    assert tensor_bytes(GgufTensor(0, (2, 3), 0), SIZES) == 24
    assert tensor_bytes(GgufTensor(2, (2, 64), 0), SIZES) == 72


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (Bytes(b"GGUF"), "is not a GGUF file"),
        (Bytes(b"GGML" + bytes(40)), "is not a GGUF file"),
        (header(version=1), "version 1"),
        (Bytes(b"GGUF" + struct.pack("<IQQ", 3, 1 << 40, 0)), "tensors"),
        (Bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 40)), "metadata fields"),
        (Bytes(b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + struct.pack("<Q", 9)), "truncated"),
        (header(fields=(text("x") + struct.pack("<I", 99),)), "unknown type 99"),
        (header(fields=(text("x") + struct.pack("<IIQIQIQ", 9, 9, 1, 9, 1, 9, 1),)), "unknown type 9"),
        (header(fields=(text("general.alignment") + struct.pack("<II", 4, 3),)), "alignment 3"),
        (header(info("x"), info("x")), "appears twice"),
        (header(info("x", kind=7)), "type 7"),
        (header(info("x", (1, 1, 1, 1, 1))), "5 dimensions"),
        (header(info("x", (0,))), "shape"),
        (header(info("x", (33,), kind=2)), "truncated"),
        (header(info("x", (17,))), "truncated"),
        (header(info("x", offset=1 << 60)), "truncated"),
    ],
)
def test_lies(file: Bytes, message: str) -> None:
    """What a header cannot say."""
    with pytest.raises(CheckpointError, match=message):
        read_header(file, SIZES)
