"""Safetensors files written one tensor after the other, whole or not at all."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from shoal.files import sync_folder

NAMES: Mapping[torch.dtype, str] = {
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_ALIGNMENT = 8


class PendingTensor(NamedTuple):
    """A tensor that is read when its turn comes."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    read: Callable[[], Tensor]

    @property
    def size_bytes(self) -> int:
        """What it takes in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


def pending(tensors: Mapping[str, Tensor]) -> list[PendingTensor]:
    """Tensors that are there already."""
    return [_held(name, tensor) for name, tensor in tensors.items()]


def _held(name: str, tensor: Tensor) -> PendingTensor:
    return PendingTensor(name, tensor.dtype, tuple(tensor.shape), lambda: tensor)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A file with these tensors; it is on the disk when this returns."""
    write_pending(path, pending(tensors))


def write_pending(path: Path, tensors: Iterable[PendingTensor]) -> None:
    """A file with these tensors in their order, of which one at a time is in memory; it is on the disk when this returns."""
    wanted = list(tensors)
    draft = path.with_suffix(".draft")
    with draft.open("wb") as file:
        file.write(_header(wanted))
        for one in wanted:
            tensor = one.read().contiguous()
            if (tensor.dtype, tuple(tensor.shape)) != (one.dtype, one.shape):
                raise ValueError(f"{one.name} is {tensor.dtype} of {list(tensor.shape)}, not as it was announced")
            file.write(tensor.flatten().view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)
    sync_folder(path.parent)


def _header(tensors: Sequence[PendingTensor]) -> bytes:
    entries, at = {}, 0
    for one in tensors:
        end = at + one.size_bytes
        entries[one.name] = {"dtype": NAMES[one.dtype], "shape": list(one.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def shards(tensors: Iterable[PendingTensor], most_bytes: int) -> list[list[PendingTensor]]:
    """Tensors in their order in as few files as hold them; one that is larger has a file of its own."""
    found: list[list[PendingTensor]] = [[]]
    size = 0
    for one in tensors:
        if found[-1] and size + one.size_bytes > most_bytes:
            found.append([])
            size = 0
        found[-1].append(one)
        size += one.size_bytes
    return found
