"""Damaged checkpoints read, or are refused with one of our errors: by random bytes and by fields that lie."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shoal.errors import CheckpointError, ShoalError
from shoal.model.families import model_config
from shoal.model.weights.byte_source import LocalFile
from shoal.model.weights.checkpoint_files import index_places, parse_config
from shoal.model.weights.gguf import GgufCheckpoint
from shoal.model.weights.safetensors import SafetensorsFile

fuzz = settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

ENTRIES: dict[str, Any] = {
    "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
    "b": {"dtype": "BF16", "shape": [2, 2], "data_offsets": [8, 16]},
}
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["F32", "U8", "BOOL", "F8_E4M3", "I64"])
    | st.lists(st.integers(0, 20), max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


def packed(header: object) -> bytes:
    """A safetensors file of 16 bytes of data under this header."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(16)


@pytest.fixture(scope="module")
def sound_gguf(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small Llama's configuration, embedding and reordered queries."""
    path = tmp_path_factory.mktemp("gguf") / "sound.gguf"
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(1)
    writer.add_head_count(2)
    writer.add_feed_forward_length(8)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(5000.0)
    writer.add_array("tokenizer.ggml.tokens", ["a", "b"])
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), dtype=np.float32))
    writer.add_tensor("blk.0.attn_q.weight", np.zeros((32, 32), dtype=np.float16))
    writer.add_tensor("rope_freqs.weight", np.ones(8, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def changes(last: int) -> st.SearchStrategy[list[tuple[int, bytes]]]:
    """Bytes and whole numbers to write over a file, at offsets up to `last`."""
    words = st.integers(0, 2**64 - 1).map(lambda value: struct.pack("<Q", value))
    return st.lists(st.tuples(st.integers(0, last), st.binary(min_size=1, max_size=1) | words), min_size=1, max_size=6)


def damaged(data: st.DataObject, sound: bytes, last: int) -> bytes:
    """The file with some bytes changed, perhaps cut off or longer."""
    file = bytearray(sound)
    for at, piece in data.draw(changes(last)):
        file[at : at + len(piece)] = piece
    return bytes(file[: data.draw(st.sampled_from([len(file)] * 4 + [len(file) // 2]))]) + data.draw(
        st.sampled_from([b""] * 4 + [b"\0"])
    )


def read_safetensors(path: Path) -> None:
    """Everything that a file's header promises is read, or the error names the file."""
    try:
        file = SafetensorsFile(LocalFile(path))
        assert all(file.read(name).shape == found.info.shape for name, found in file.entries.items())
        assert all(len(file.sample(name, 4)) <= 4 for name in file.entries)
    except CheckpointError as error:
        assert path.name in str(error)
        str(error).encode()


@fuzz
@given(data=st.data())
def test_damaged_safetensors(tmp_path: Path, data: st.DataObject) -> None:
    """Any change of bytes."""
    sound = packed(ENTRIES)
    path = tmp_path / "model.safetensors"
    path.write_bytes(damaged(data, sound, len(sound) - 1))
    read_safetensors(path)


@fuzz
@given(
    name=st.sampled_from(["a", "b", "__metadata__"]), field=st.sampled_from([None, *ENTRIES["a"]]), value=json_values
)
def test_lying_safetensors(tmp_path: Path, name: str, field: str | None, value: Any) -> None:
    """Any value in the place of a tensor or of one of its fields."""
    given = value if field is None else {**ENTRIES.get(name, {}), field: value}
    path = tmp_path / "model.safetensors"
    path.write_bytes(packed({**ENTRIES, name: given}))
    read_safetensors(path)


@fuzz
@given(data=st.data())
def test_damaged_gguf(tmp_path: Path, sound_gguf: bytes, data: st.DataObject) -> None:
    """Any change of the header's bytes: configuration and tensors too."""
    path = tmp_path / "model.gguf"
    path.write_bytes(damaged(data, sound_gguf, len(sound_gguf) - 4 * 32 * 4 - 32 * 32 * 2 - 32))
    try:
        checkpoint = GgufCheckpoint(str(path), LocalFile(path))
        assert all(checkpoint.read(name).shape == info.shape for name, info in checkpoint.tensors.items())
        assert all(len(checkpoint.sample(name, 4)) <= 4 for name in checkpoint.tensors)
        model_config(checkpoint.config)
    except ShoalError as error:
        assert str(error)


def json_files() -> Iterator[st.SearchStrategy[bytes]]:
    """Bytes, JSON, and JSON that looks like an index."""
    yield st.binary(max_size=40)
    yield json_values.map(lambda value: json.dumps(value).encode())
    yield json_values.map(lambda value: json.dumps({"weight_map": value}).encode())
    yield st.dictionaries(st.text(max_size=3), st.text(max_size=3).map("x{}.safetensors".format), max_size=3).map(
        lambda value: json.dumps({"weight_map": value}).encode()
    )


@fuzz
@given(text=st.one_of(*json_files()))
def test_any_index_names_files_beside_it_or_is_refused(text: bytes) -> None:
    """No index leads out of its directory."""
    try:
        files = set(index_places(text, "index.json").values())
        assert isinstance(parse_config(text, "index.json"), dict)
        assert files
        assert all(Path(file).name == file and file.endswith(".safetensors") for file in files)
    except CheckpointError as error:
        assert "index.json" in str(error)
