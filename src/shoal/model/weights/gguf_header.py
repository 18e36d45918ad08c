"""A GGUF file's header, parsed with bounds (versions 2 and 3; the format: ggml's docs/gguf.md).

The `gguf` package's own reader trusts its file; this one is for files from strangers.
"""

from __future__ import annotations

import math
import struct
from typing import Any, NamedTuple

from shoal.errors import CheckpointError
from shoal.model.weights.byte_source import ByteSource, refuse_pointer

MAX_TENSORS = 1 << 16
MAX_FIELDS = 1 << 12
MAX_ELEMENTS = 1 << 22
MAX_STRING_BYTES = 1 << 24
MAX_DIMENSIONS = 4
WINDOW_BYTES = 1 << 20

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_LENGTH = struct.Struct("<Q")


class GgufTensor(NamedTuple):
    """A tensor's quantization type, shape (slowest dimension first) and place in the file."""

    type_id: int
    shape: tuple[int, ...]
    offset: int


class GgufHeader(NamedTuple):
    """Metadata (arrays longer than `KEPT_ELEMENTS` are left out), tensors by their GGUF names, and where those begin."""

    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]
    size_bytes: int


KEPT_ELEMENTS = 4096


class _Cursor:
    """Walks a file through a window, never beyond its end."""

    def __init__(self, source: ByteSource) -> None:
        self._source = source
        self._start = self._at = 0
        self._window = bytearray()

    @property
    def position(self) -> int:
        return self._start + self._at

    def take(self, length: int) -> bytes:
        if self._at + length > len(self._window):
            self._refill(length)
        data = bytes(self._window[self._at : self._at + length])
        self._at += length
        return data

    def _refill(self, length: int) -> None:
        position, size = self.position, self._source.size
        if position + length > size:
            raise CheckpointError(
                f"{self._source.name} is truncated: its header needs byte {position + length} of {size}"
            )
        self._window = self._source.read(position, min(max(length, WINDOW_BYTES), size - position))
        self._start, self._at = position, 0

    def number(self, code: str) -> Any:
        return struct.unpack(code, self.take(struct.calcsize(code)))[0]

    def count(self, limit: int, what: str) -> int:
        value = int(self.number("<Q"))
        if value > limit:
            raise CheckpointError(f"{self._source.name} claims {value} {what} (at most {limit} are allowed)")
        return value

    def string(self) -> str:
        return self.take(self.count(MAX_STRING_BYTES, "bytes in a string")).decode("utf-8", "replace")

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY and depth < 2:
            return self._array(depth)
        if kind not in _SCALARS:
            raise CheckpointError(f"{self._source.name}: a metadata field has unknown type {kind}")
        return self.number(_SCALARS[kind])

    def _array(self, depth: int) -> list[Any]:
        kind = int(self.number("<I"))
        count = self.count(MAX_ELEMENTS, "elements in an array")
        if count <= KEPT_ELEMENTS:
            return [self.value(kind, depth + 1) for _ in range(count)]
        for _ in range(count):
            if kind == _STRING:
                self._skip_string()
            else:
                self.value(kind, depth + 1)
        return []

    def _skip_string(self) -> None:
        """Pass a string: a vocabulary has 100,000 that nobody asks for, and decoding them takes 0.1 s."""
        start = self._at + _LENGTH.size
        if start <= len(self._window):
            stop = start + _LENGTH.unpack_from(self._window, self._at)[0]
            if stop <= len(self._window):
                self._at = stop
                return
        self.take(self.count(MAX_STRING_BYTES, "bytes in a string"))


def read_header(source: ByteSource, type_sizes: dict[int, tuple[int, int]]) -> GgufHeader:
    """The header of a GGUF file. `type_sizes`: by type id, elements and bytes of one quantization block.

    Raises CheckpointError for anything that is not a whole, honest file.
    """
    refuse_pointer(source)
    cursor = _Cursor(source)
    if source.size < 24 or cursor.take(4) != b"GGUF":
        raise CheckpointError(f"{source.name} is not a GGUF file")
    version = cursor.number("<I")
    if version not in (2, 3):
        raise CheckpointError(f"{source.name} is GGUF version {version}; versions 2 and 3 are read")
    num_tensors = cursor.count(MAX_TENSORS, "tensors")
    num_fields = cursor.count(MAX_FIELDS, "metadata fields")
    metadata = {}
    for _ in range(num_fields):
        key = cursor.string()
        metadata[key] = cursor.value(int(cursor.number("<I")))
    infos = [_info(cursor, source) for _ in range(num_tensors)]
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment not in (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096):
        raise CheckpointError(f"{source.name}: alignment {alignment} cannot be")
    data_start = -(-cursor.position // alignment) * alignment
    tensors: dict[str, GgufTensor] = {}
    for name, tensor in infos:
        if name in tensors:
            raise CheckpointError(f"{source.name}: tensor {name[:100]} appears twice")
        tensors[name] = tensor._replace(offset=data_start + tensor.offset)
        _check(source, name, tensors[name], type_sizes)
    return GgufHeader(metadata, tensors, cursor.position)


def _info(cursor: _Cursor, source: ByteSource) -> tuple[str, GgufTensor]:
    name = cursor.string()
    dimensions = int(cursor.number("<I"))
    if not 0 < dimensions <= MAX_DIMENSIONS:
        raise CheckpointError(f"{source.name}: tensor {name[:100]} has {dimensions} dimensions")
    shape = tuple(cursor.number("<Q") for _ in range(dimensions))
    type_id = int(cursor.number("<I"))
    return name, GgufTensor(type_id, shape[::-1], int(cursor.number("<Q")))


def _check(source: ByteSource, name: str, tensor: GgufTensor, type_sizes: dict[int, tuple[int, int]]) -> None:
    if tensor.type_id not in type_sizes:
        raise CheckpointError(f"{source.name}: tensor {name[:100]} has type {tensor.type_id}, which is not known")
    if not all(0 < size < 1 << 40 for size in tensor.shape):
        raise CheckpointError(f"{source.name}: tensor {name[:100]} has shape {tensor.shape}")
    stop = tensor.offset + tensor_bytes(tensor, type_sizes)
    if tensor.shape[-1] % type_sizes[tensor.type_id][0] or stop > source.size:
        raise CheckpointError(
            f"{source.name}: tensor {name[:100]} ends at byte {stop} of {source.size}: it is truncated"
        )


def tensor_bytes(tensor: GgufTensor, type_sizes: dict[int, tuple[int, int]]) -> int:
    """Bytes that a tensor takes in the file."""
    elements, size = type_sizes[tensor.type_id]
    return math.prod(tensor.shape) // elements * size
