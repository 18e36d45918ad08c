"""What is taken of a layer's tensors, and what is not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from shoal.errors import CheckpointError
from shoal.model.quant.stored_tensors import floats, integers, permutation, unsigned


def test_tensors_of_both_libraries_are_taken() -> None:
    """Whole numbers come as numpy has them, floats as torch does."""
    stored = {"a": np.arange(3, dtype=np.int32), "b": torch.arange(3, dtype=torch.int32), "c": np.ones(2, np.float16)}
    assert integers(stored, "a", np.int32, 1).tolist() == integers(stored, "b", np.int32, 1).tolist() == [0, 1, 2]
    assert torch.equal(floats(stored, "c", [2]), torch.ones(2, dtype=torch.float16))
    assert permutation(stored, "b", 3).tolist() == [0, 1, 2]
    assert unsigned(np.array([-1], np.int32)).tolist() == [0xFFFFFFFF]


def test_what_is_not_taken() -> None:
    """Another dtype, shape or number of dimensions, what is not finite, and what is not there."""
    stored = {"a": np.arange(3, dtype=np.int32), "c": np.array([1, np.nan], np.float16), "d": np.ones(2, np.float64)}
    for take in (
        lambda: integers(stored, "a", np.int64, 1),
        lambda: integers(stored, "a", np.int32, 2),
        lambda: floats(stored, "c", [2]),
        lambda: floats(stored, "d", [2]),
        lambda: floats(stored, "c", [3]),
        lambda: permutation(stored, "a", 4),
        lambda: integers(stored, "b", np.int32, 1),
    ):
        with pytest.raises(CheckpointError, match=r"[abcd]"):
            take()
