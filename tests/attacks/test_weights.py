"""Checkpoints from strangers: lying and truncated headers give a CheckpointError that names the file, and nothing else."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from shoal.errors import CheckpointError
from shoal.model.weights.byte_source import LocalFile
from shoal.model.weights.gguf import GgufCheckpoint
from shoal.model.weights.safetensors import SafetensorsFile


def safetensors(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    """A file of this header, honest about its length unless told otherwise."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, object]:
    """One tensor's description."""
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


GOOD = safetensors({"a": entry(), "b": entry(shape=(1, 2), offsets=(8, 16))}, bytes(16))

LIES = {
    "empty": b"",
    "seven bytes": b"1234567",
    "endless header": safetensors({}, length=2**63),
    "header beyond the file": safetensors({"a": entry()}, length=10_000),
    "not JSON": safetensors(b"{'a': 1}"),
    "not UTF-8": safetensors(b'{"\xff": 1}'),
    "a list": safetensors([1, 2]),
    "deep": safetensors(b"[" * 100_000),
    "the same key twice": safetensors(
        b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'
    ),
    "a name that cannot be printed": safetensors({"\ud800": entry()}, bytes(8)),
    "a number of 5000 digits": safetensors(
        b'{"a":{"dtype":"U8","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,8]}}', bytes(8)
    ),
    "dtype is a list": safetensors({"a": entry(["F32"])}, bytes(8)),
    "no dtype": safetensors({"a": {"shape": [2], "data_offsets": [0, 8]}}, bytes(8)),
    "unknown dtype": safetensors({"a": entry("F31")}, bytes(8)),
    "negative size": safetensors({"a": entry(shape=(-2,))}, bytes(8)),
    "fractional size": safetensors({"a": entry(shape=(2.0,))}, bytes(8)),
    "size is true": safetensors({"a": entry(shape=(True, 2))}, bytes(8)),
    "huge product": safetensors({"a": entry(shape=(2**40, 2**40))}, bytes(8)),
    "many dimensions": safetensors({"a": entry(shape=(1,) * 1000, offsets=(0, 4))}, bytes(4)),
    "too few bytes": safetensors({"a": entry(shape=(3,))}, bytes(8)),
    "beyond the end": safetensors({"a": entry(shape=(200,), offsets=(0, 800))}, bytes(8)),
    "backwards": safetensors({"a": entry(offsets=(8, 0))}, bytes(8)),
    "three offsets": safetensors({"a": entry(offsets=(0, 8, 16))}, bytes(16)),
    "overlap": safetensors({"a": entry(), "b": entry(offsets=(4, 12))}, bytes(12)),
    "hole": safetensors({"a": entry(), "b": entry(offsets=(12, 20))}, bytes(20)),
    "truncated": GOOD[:-1],
    "longer than it says": GOOD + b"\0",
}


@pytest.mark.parametrize("name", LIES)
def test_lying_safetensors(tmp_path: Path, name: str) -> None:
    """Each is refused before anything of its size is allocated."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(LIES[name])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        SafetensorsFile(LocalFile(path))


def text(value: bytes) -> bytes:
    """A GGUF string."""
    return struct.pack("<Q", len(value)) + value


def header(tensors: int = 0, fields: int = 0, version: int = 3, rest: bytes = b"") -> bytes:
    """A GGUF header."""
    return b"GGUF" + struct.pack("<IQQ", version, tensors, fields) + rest


def tensor(dimensions: int = 1, sizes: tuple[int, ...] = (32,), kind: int = 0, offset: int = 0) -> bytes:
    """A GGUF tensor description."""
    shape = b"".join(struct.pack("<Q", size) for size in sizes)
    return text(b"x") + struct.pack("<I", dimensions) + shape + struct.pack("<IQ", kind, offset)


ALIGNMENT = text(b"general.alignment") + struct.pack("<I", 4)

GGUF_LIES = {
    "empty": b"",
    "another file": b"PK\3\4" + bytes(100),
    "version 1": header(version=1),
    "2^60 tensors": header(tensors=2**60),
    "2^60 fields": header(fields=2**60),
    "cut off": header(fields=3),
    "endless key": header(fields=1, rest=struct.pack("<Q", 2**62)),
    "endless string": header(fields=1, rest=text(b"k") + struct.pack("<IQ", 8, 2**61)),
    "endless array": header(fields=1, rest=text(b"k") + struct.pack("<IIQ", 9, 4, 2**60)),
    "arrays in arrays": header(fields=1, rest=text(b"k") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 50),
    "unknown type": header(fields=1, rest=text(b"k") + struct.pack("<I", 99)),
    "bad alignment": header(fields=1, rest=ALIGNMENT + struct.pack("<I", 0)),
    "odd alignment": header(fields=1, rest=ALIGNMENT + struct.pack("<I", 33)),
    "1000 dimensions": header(tensors=1, rest=tensor(dimensions=1000)),
    "no dimension": header(tensors=1, rest=tensor(dimensions=0, sizes=())),
    "huge tensor": header(tensors=1, rest=tensor(2, (2**39, 2**39))) + bytes(256),
    "empty tensor": header(tensors=1, rest=tensor(1, (0,))) + bytes(256),
    "beyond the end": header(tensors=1, rest=tensor(offset=2**50)) + bytes(256),
    "half a block": header(tensors=1, rest=tensor(sizes=(33,), kind=2)) + bytes(256),
    "unknown quantization": header(tensors=1, rest=tensor(kind=1234)) + bytes(256),
    "twice": header(tensors=2, rest=tensor() * 2) + bytes(512),
    "truncated": header(tensors=1, rest=tensor()) + bytes(20),
}


@pytest.mark.parametrize("name", GGUF_LIES)
def test_lying_gguf(tmp_path: Path, name: str) -> None:
    """Each is refused before anything of its size is allocated."""
    path = tmp_path / "model.gguf"
    path.write_bytes(GGUF_LIES[name])
    with pytest.raises(CheckpointError, match=r"model\.gguf"):
        GgufCheckpoint(str(path), LocalFile(path))


def test_a_gguf_file_that_claims_a_huge_model(tmp_path: Path) -> None:
    """4,096 blocks of 4,096 experts are not listed one by one: the error comes before."""
    fields = {
        "block_count": 4096,
        "expert_count": 4096,
        "expert_used_count": 2,
        "attention.head_count": 4,
        "feed_forward_length": 32,
        "expert_feed_forward_length": 32,
    }
    pairs = [text(f"qwen3moe.{key}".encode()) + struct.pack("<II", 4, value) for key, value in fields.items()]
    pairs.append(text(b"general.architecture") + struct.pack("<I", 8) + text(b"qwen3moe"))
    embedding = text(b"token_embd.weight") + struct.pack("<IQQIQ", 2, 32, 4, 0, 0)
    path = tmp_path / "model.gguf"
    path.write_bytes(
        header(tensors=1, fields=len(pairs), rest=b"".join(pairs) + embedding).ljust(1024, b"\0") + bytes(512)
    )
    with pytest.raises(CheckpointError, match="more than"):
        GgufCheckpoint(str(path), LocalFile(path))
