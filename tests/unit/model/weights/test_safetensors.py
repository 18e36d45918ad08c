"""Safetensors by range: every dtype as the safetensors package writes it, and nothing read but what was asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from shoal.errors import CheckpointError
from shoal.model.weights.byte_source import LocalFile
from shoal.model.weights.safetensors import DTYPES, SafetensorsCheckpoint, SafetensorsFile


def stored(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> SafetensorsFile:
    """A file that the safetensors package wrote, opened by ours."""
    save_file(tensors, path, metadata)
    return SafetensorsFile(LocalFile(path))


def some(dtype: torch.dtype, *shape: int) -> Tensor:
    """Numbers that every dtype holds, none of them twice in a row."""
    return (torch.arange(torch.Size(shape).numel()) % 7).reshape(shape).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_every_dtype_is_read_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    """What the safetensors package stored is what comes out, with its shape and dtype."""
    given = some(dtype, 3, 5)
    file = stored(tmp_path / "one.safetensors", {"a": given})
    read = file.read("a")
    assert (read.dtype, read.shape) == (dtype, given.shape)
    assert torch.equal(read.view(torch.uint8), given.view(torch.uint8))
    info = file.entries["a"].info
    assert (DTYPES[info.dtype], info.shape) == (dtype, (3, 5))


def test_a_tensor_costs_its_bytes(tmp_path: Path) -> None:
    """Opening reads the header, a tensor its own bytes, a sample only the sample; all of it is counted."""
    path = tmp_path / "two.safetensors"
    tensors = {"big": some(torch.float32, 100, 10), "small": some(torch.float16, 3)}
    file = stored(path, tensors)
    source = file.source
    header = path.stat().st_size - 4006
    assert source.bytes_read == header
    assert torch.equal(file.read("small"), tensors["small"])
    assert source.bytes_read == header + 6
    assert file.sample("big", 64) == tensors["big"].numpy().tobytes()[:64]
    assert source.bytes_read == header + 70
    assert file.sample("small", 1024) == tensors["small"].numpy().tobytes()
    assert source.bytes_read == header + 76


def test_scalars_empty_tensors_and_metadata(tmp_path: Path) -> None:
    """No dimensions, no elements, and the writer's notes, which are no tensor."""
    tensors = {"none": torch.empty(0, 4), "one": torch.tensor(2.5), "row": torch.ones(3)}
    file = stored(tmp_path / "odd.safetensors", tensors, {"format": "pt"})
    assert set(file.entries) == set(tensors)
    assert all(torch.equal(file.read(name), tensor) for name, tensor in tensors.items())
    assert file.sample("none", 8) == b""


def test_what_is_read_is_writable_and_its_own(tmp_path: Path) -> None:
    """Changing a tensor changes neither the file nor the next reading."""
    file = stored(tmp_path / "own.safetensors", {"a": torch.ones(4)})
    file.read("a").zero_()
    assert torch.equal(file.read("a"), torch.ones(4))


def test_a_checkpoint_of_several_files(tmp_path: Path) -> None:
    """Tensors are found in whichever file holds them; bytes are summed; unknown names are refused."""
    first = stored(tmp_path / "1.safetensors", {"a": torch.ones(4)})
    second = stored(tmp_path / "2.safetensors", {"b": torch.zeros(2, 2)})
    checkpoint = SafetensorsCheckpoint("here", "tiny", {}, [first, second], "abc")
    header = checkpoint.bytes_read
    assert header == first.source.bytes_read + second.source.bytes_read
    assert {name: info.shape for name, info in checkpoint.tensors.items()} == {"a": (4,), "b": (2, 2)}
    assert torch.equal(checkpoint.read("b"), torch.zeros(2, 2))
    assert checkpoint.sample("a", 4) == torch.ones(1).numpy().tobytes()
    assert checkpoint.bytes_read == header + 20
    for ask in (checkpoint.read, lambda name: checkpoint.sample(name, 8)):
        with pytest.raises(CheckpointError, match="here has no tensor nobody"):
            ask("nobody")


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    """Which of them is meant cannot be known; both files are named."""
    files = [stored(tmp_path / f"{number}.safetensors", {"a": torch.ones(4)}) for number in (1, 2)]
    with pytest.raises(CheckpointError, match=r"tensor a is in .*1\.safetensors and in .*2\.safetensors"):
        SafetensorsCheckpoint("here", "tiny", {}, files)


def test_a_file_that_shrinks_or_goes_while_it_is_open(tmp_path: Path) -> None:
    """The header was honest when it was read; the error names the file all the same."""
    path = tmp_path / "gone.safetensors"
    file = stored(path, {"a": torch.ones(4)})
    with path.open("r+b") as opened:
        opened.truncate(path.stat().st_size - 1)
    with pytest.raises(CheckpointError, match=r"gone\.safetensors ends at"):
        file.read("a")
    path.unlink()
    with pytest.raises(CheckpointError, match=r"gone\.safetensors cannot be read"):
        file.read("a")
    with pytest.raises(CheckpointError, match=r"gone\.safetensors cannot be read"):
        LocalFile(path)
