"""A GGUF file's tensors: every type that can be dequantized, and parts of a stack."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize, quantize

from shoal.errors import CheckpointError
from shoal.model.weights.byte_source import LocalFile
from shoal.model.weights.checkpoint import TensorInfo
from shoal.model.weights.gguf_file import GgufFile


def written(path: Path, tensors: dict[str, np.ndarray]) -> GgufFile:
    """A file of these tensors in fp32, slowest dimension first."""
    writer = gguf.GGUFWriter(str(path), "llama")
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return GgufFile(LocalFile(path))


def can_quantize() -> list[gguf.GGMLQuantizationType]:
    """The types that the gguf package quantizes and dequantizes."""
    found = []
    for kind in gguf.GGMLQuantizationType:
        try:
            dequantize(quantize(np.zeros((2, 256), dtype=np.float32), kind), kind)
        except (NotImplementedError, KeyError):
            continue
        found.append(kind)
    return found


@pytest.mark.parametrize("kind", can_quantize(), ids=lambda kind: kind.name)
def test_every_type_that_can_be_dequantized(tmp_path: Path, kind: gguf.GGMLQuantizationType) -> None:
    """What is read is what the gguf package makes of the stored bytes, in fp32."""
    numbers = np.random.default_rng(1).normal(size=(3, 256)).astype(np.float32)
    packed = quantize(numbers, kind)
    path = tmp_path / "one.gguf"
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(1)
    writer.add_tensor("token_embd.weight", packed, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    read = GgufFile(LocalFile(path)).read("token_embd.weight")
    assert read.dtype == torch.float32
    assert torch.equal(read, torch.from_numpy(dequantize(packed, kind).astype(np.float32)))


def test_one_of_a_stack_costs_its_bytes(tmp_path: Path) -> None:
    """An expert is read alone."""
    stack = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
    file = written(tmp_path / "stack.gguf", {"experts": stack})
    before = file.source.bytes_read
    assert torch.equal(file.read("experts", 1), torch.from_numpy(stack[1]))
    assert file.source.bytes_read - before == 80
    assert torch.equal(file.read("experts"), torch.from_numpy(stack))


def test_what_is_there(tmp_path: Path) -> None:
    """Names, shapes and types as GGUF calls them; samples of the stored bytes; other names are refused."""
    file = written(tmp_path / "one.gguf", {"a": np.ones((2, 3), dtype=np.float32), "b": np.ones(8, dtype=np.float16)})
    assert ("a" in file, "c" in file) == (True, False)
    assert file.info("a") == TensorInfo("F32", (2, 3))
    assert file.info("b").dtype == "F16"
    assert file.shape("a") == (2, 3)
    assert file.name == str(tmp_path / "one.gguf")
    assert file.sample("a", 4) == np.float32(1).tobytes()
    assert len(file.sample("a", 99)) == 24
    for missing in (file.info, file.read, lambda name: file.sample(name, 1)):
        with pytest.raises(CheckpointError, match="no tensor c"):
            missing("c")
