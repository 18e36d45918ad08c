"""Safetensors files that are written piece by piece."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from shoal.quantize.tensor_file import PendingTensor, pending, shards, write_pending, write_tensors

TENSORS = {
    "b.q_weight": torch.arange(6, dtype=torch.int32).view(2, 3),
    "a": torch.tensor([1.5, -2.0], dtype=torch.float16),
    "empty": torch.empty(0, 4),
    "t": torch.arange(6.0).view(2, 3).T,
    "flag": torch.tensor(True),
}


def test_the_library_reads_it(tmp_path: Path) -> None:
    """Names, dtypes, shapes and numbers; a tensor that does not lie in order too."""
    path = tmp_path / "output.safetensors"
    write_tensors(path, TENSORS)
    found = load_file(path)
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    assert [one.name for one in tmp_path.iterdir()] == ["output.safetensors"]


def test_what_was_there_stays_when_writing_fails(tmp_path: Path) -> None:
    """A tensor that is not what it was announced to be."""
    path = tmp_path / "output.safetensors"
    write_tensors(path, TENSORS)
    before = path.read_bytes()
    lie = PendingTensor("lie", torch.float16, (3,), lambda: torch.zeros(4, dtype=torch.float16))
    with pytest.raises(ValueError, match="as it was announced"):
        write_pending(path, [*pending(TENSORS), lie])
    assert path.read_bytes() == before


def test_shards_keep_the_order_and_never_cut_a_tensor() -> None:
    """As many as fit; one that is larger than a shard stands alone."""
    sizes = [4, 4, 20, 4, 6, 2]
    tensors = [PendingTensor(str(at), torch.uint8, (size,), lambda: torch.empty(0)) for at, size in enumerate(sizes)]
    assert [[one.name for one in some] for some in shards(tensors, 10)] == [["0", "1"], ["2"], ["3", "4"], ["5"]]
    assert shards([], 10) == [[]]
