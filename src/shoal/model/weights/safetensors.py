"""Safetensors files, read by range. The format: https://github.com/huggingface/safetensors (its README)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from shoal.errors import CheckpointError
from shoal.model.kernels.quantized import Matrix
from shoal.model.weights.byte_source import ByteSource, refuse_pointer
from shoal.model.weights.checkpoint import TensorInfo
from shoal.model.weights.quantization_note import NO_NOTE, QuantizationNote

MAX_HEADER_BYTES = 100_000_000
MAX_DIMENSIONS = 8

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class Entry(NamedTuple):
    """Where a tensor lies: `start` and `stop` are offsets in the file."""

    info: TensorInfo
    start: int
    stop: int


class SafetensorsFile:
    """One file: its header is read and checked at once, its tensors when asked for."""

    def __init__(self, source: ByteSource) -> None:
        self.source = source
        self.entries = _entries(source)

    def read(self, name: str) -> Tensor:
        """One tensor in its stored dtype."""
        info, start, stop = self.entries[name]
        if start == stop:
            return torch.empty(info.shape, dtype=DTYPES[info.dtype])
        return torch.frombuffer(self.source.read(start, stop - start), dtype=DTYPES[info.dtype]).view(info.shape)

    def sample(self, name: str, size_bytes: int) -> bytes:
        """The first bytes of a tensor."""
        _, start, stop = self.entries[name]
        return bytes(self.source.read(start, min(size_bytes, stop - start)))


def _entries(source: ByteSource) -> dict[str, Entry]:
    refuse_pointer(source)
    if source.size < 8:
        raise CheckpointError(f"{source.name} has {source.size} bytes: it is not a safetensors file")
    header_bytes = int.from_bytes(source.read(0, 8), "little")
    if header_bytes > min(MAX_HEADER_BYTES, source.size - 8):
        raise CheckpointError(
            f"{source.name} claims a header of {header_bytes} bytes in a file of {source.size}: it is truncated or damaged"
        )
    header = _parse(source, bytes(source.read(8, header_bytes)))
    data_start = 8 + header_bytes
    entries = {
        name: _entry(source, name, given, data_start) for name, given in header.items() if name != "__metadata__"
    }
    at = data_start
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
        if entry.start != at:
            raise CheckpointError(f"{source.name}: tensor {name} overlaps another or leaves a hole")
        at = entry.stop
    if at != source.size:
        raise CheckpointError(f"{source.name} has {source.size} bytes, its header describes {at}: it is truncated")
    return entries


def _parse(source: ByteSource, text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise ValueError("a key appears twice")
        "".join(key for key, _ in pairs).encode()  # a ValueError for lone surrogates, which nobody can print
        return dict(pairs)

    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{source.name}: the header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{source.name}: the header is not a JSON object")
    return header


def _entry(source: ByteSource, name: str, given: Any, data_start: int) -> Entry:
    what = f"{source.name}: tensor {name[:100]}"
    if not isinstance(given, dict) or not isinstance(given.get("dtype"), str) or given["dtype"] not in DTYPES:
        raise CheckpointError(f"{what} has no known dtype")
    shape = _naturals(given.get("shape"), f"{what}: shape")
    offsets = _naturals(given.get("data_offsets"), f"{what}: offsets")
    if len(shape) > MAX_DIMENSIONS or len(offsets) != 2:
        raise CheckpointError(f"{what} has {len(shape)} dimensions and {len(offsets)} offsets")
    start, stop = data_start + offsets[0], data_start + offsets[1]
    needed = math.prod(shape) * DTYPES[given["dtype"]].itemsize
    if stop - start != needed or stop > source.size:
        raise CheckpointError(f"{what} needs {needed} bytes; the file gives it {stop - start} of its {source.size}")
    return Entry(TensorInfo(given["dtype"], tuple(shape)), start, stop)


def _naturals(value: Any, what: str) -> list[int]:
    if not isinstance(value, list) or not all(type(one) is int and 0 <= one < 1 << 62 for one in value):
        raise CheckpointError(f"{what} {str(value)[:100]} is not a list of natural numbers")
    return value


class SafetensorsCheckpoint:
    """Tensors spread over one or more files."""

    def __init__(
        self,
        source: str,
        name: str,
        config: Mapping[str, Any],
        files: Sequence[SafetensorsFile],
        revision: str = "",
        places: Mapping[str, str] | None = None,
        note: QuantizationNote = NO_NOTE,
    ) -> None:
        """`places` are the files of an index; raises CheckpointError for one of these files without its tensor."""
        self.source = source
        self.name = name
        self.revision = revision
        self.config = config
        self.note = note
        self._files = files
        self._home: dict[str, SafetensorsFile] = {}
        for file in files:
            for tensor in file.entries:
                if tensor in self._home:
                    first = self._home[tensor].source.name
                    raise CheckpointError(f"tensor {tensor} is in {first} and in {file.source.name}")
                self._home[tensor] = file
        self.tensors = {tensor: file.entries[tensor].info for tensor, file in self._home.items()}
        names = {file.source.name.replace("\\", "/").rpartition("/")[2] for file in files}
        for tensor, place in (places or {}).items():
            if place in names and tensor not in self._home:
                raise CheckpointError(
                    f"{source}: {place} lacks {tensor}, which the index has there: it is another model's"
                )

    @property
    def bytes_read(self) -> int:
        """Checkpoint: bytes of headers and tensors read so far."""
        return sum(file.source.bytes_read for file in self._files)

    def _file(self, name: str) -> SafetensorsFile:
        if name not in self._home:
            raise CheckpointError(f"{self.source} has no tensor {name}")
        return self._home[name]

    def read(self, name: str) -> Tensor:
        """Checkpoint: one tensor in its stored dtype."""
        return self._file(name).read(name)

    def matrix(self, name: str) -> Matrix:
        """Checkpoint: the same."""
        return self.read(name)

    def sample(self, name: str, size_bytes: int) -> bytes:
        """Checkpoint: the first bytes of a tensor as they are stored."""
        return self._file(name).sample(name, size_bytes)
