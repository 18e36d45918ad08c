"""The tensors of one quantized linear layer as they are stored, checked before they are used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from shoal.errors import CheckpointError

Array = npt.NDArray[Any]
Stored = Mapping[str, "Array | Tensor"]
"""Tensors by their names in the file."""

FLOATS = (torch.float16, torch.bfloat16, torch.float32)


def integers(tensors: Stored, name: str, dtype: type[np.generic], dimensions: int) -> Array:
    """A tensor of whole numbers, as numpy has it; raises CheckpointError unless it has this dtype and dimensions."""
    given = _given(tensors, name)
    array = given.numpy() if isinstance(given, Tensor) else given
    if array.dtype != dtype or array.ndim != dimensions:
        raise CheckpointError(
            f"{name} is {array.dtype} of {list(array.shape)}, not {np.dtype(dtype)} in {dimensions} dimensions"
        )
    return array


def floats(tensors: Stored, name: str, shape: Sequence[int], dtypes: Sequence[torch.dtype] = FLOATS) -> Tensor:
    """A tensor of finite floats; raises CheckpointError unless it has this shape and one of these dtypes."""
    given = _given(tensors, name)
    tensor = given if isinstance(given, Tensor) else torch.from_numpy(np.array(given))
    if tensor.dtype not in dtypes or tuple(tensor.shape) != tuple(shape):
        raise CheckpointError(f"{name} is {tensor.dtype} of {list(tensor.shape)}, not floats of {list(shape)}")
    if not bool(torch.isfinite(tensor).all()):
        raise CheckpointError(f"{name} has numbers that are not finite")
    return tensor


def unsigned(array: Array) -> npt.NDArray[np.uint32]:
    """32-bit words, whatever sign their dtype has."""
    return np.ascontiguousarray(array).view(np.uint32)


def permutation(tensors: Stored, name: str, count: int) -> Array:
    """A permutation of 0 … count − 1 in int32; raises CheckpointError for anything else."""
    order = integers(tensors, name, np.int32, 1)
    if len(order) != count or not np.array_equal(np.sort(order), np.arange(count)):
        raise CheckpointError(f"{name} is no permutation of 0 … {count - 1}")
    return order


def _given(tensors: Stored, name: str) -> Array | Tensor:
    if name not in tensors:
        raise CheckpointError(f"there is no tensor {name}")
    return tensors[name]
