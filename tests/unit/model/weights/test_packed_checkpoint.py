"""Packed tensors behind the face of a checkpoint."""

from __future__ import annotations

import pytest
import torch

from shoal.errors import CheckpointError
from shoal.model.weights.checkpoint import TensorInfo
from shoal.model.weights.packed_checkpoint import PackedCheckpoint, PackedTensor, stored_as_is
from tests.unit.model.weights.checkpoints import MemoryCheckpoint

CODES, SCALES, PLAIN = torch.tensor([1, 2], dtype=torch.uint8), torch.tensor([10.0, 100.0]), torch.ones(3)
INNER = MemoryCheckpoint({"w.codes": CODES, "w.scales": SCALES, "plain": PLAIN}, model_type="llama")
PACKED = PackedTensor(TensorInfo("CODES", (2,)), ("w.codes", "w.scales"), lambda parts: parts[0] * parts[1])


@pytest.fixture
def checkpoint() -> PackedCheckpoint:
    """One tensor is packed, one is not; parts are not tensors of the model."""
    return PackedCheckpoint(INNER, {"w": PACKED, "plain": stored_as_is("plain", INNER.tensors["plain"])})


def test_tensors_are_the_numbers_that_they_stand_for(checkpoint: PackedCheckpoint) -> None:
    """And keep the dtype's name that they are stored in; a code of 8 bits and a scale of 32 are 40 bits."""
    assert checkpoint.tensors == {"w": TensorInfo("CODES", (2,), bits=40.0), "plain": TensorInfo("F32", (3,))}
    assert checkpoint.read("w").tolist() == [10.0, 200.0]
    assert torch.equal(checkpoint.read("plain"), PLAIN)
    with pytest.raises(CheckpointError, match="no tensor x"):
        checkpoint.read("x")


def test_the_rest_is_the_inner_checkpoints(checkpoint: PackedCheckpoint) -> None:
    """Names, configuration and bytes; samples are of what is stored."""
    assert (checkpoint.source, checkpoint.name, checkpoint.revision) == ("memory", "Memory", "")
    assert checkpoint.config == {"model_type": "llama"}
    before = checkpoint.bytes_read
    checkpoint.read("w")
    assert checkpoint.bytes_read - before == CODES.nbytes + SCALES.nbytes
    assert checkpoint.sample("w", 1) == b"\x01"
    assert checkpoint.sample("plain", 99) == PLAIN.numpy().tobytes()
