"""The fingerprint of a base checkpoint: what changes it, and what does not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from shoal.engine.proof import numbers
from shoal.model.weights.checkpoint import SAMPLE_BYTES, SAMPLED_TENSORS, fingerprint
from tests.unit.model.weights.checkpoints import MemoryCheckpoint

CONFIG = {"model_type": "llama", "hidden_size": 64, "torch_dtype": "float32"}


def held(count: int = 6) -> dict[str, Tensor]:
    """Tensors of two samples' size."""
    return {f"t{index:02}": numbers(index, 2, SAMPLE_BYTES // 4) for index in range(count)}


USUAL = fingerprint(MemoryCheckpoint(held(), **CONFIG))


def test_the_same_files_have_the_same() -> None:
    """32 hexadecimal digits, whatever the order of tensors and fields."""
    backwards = dict(reversed(held().items()))
    assert fingerprint(MemoryCheckpoint(backwards, **dict(reversed(CONFIG.items())))) == USUAL
    assert len(bytes.fromhex(USUAL)) == 16


@pytest.mark.parametrize("field", ["_name_or_path", "torch_dtype", "transformers_version", "eos_token_id"])
def test_where_a_file_was_made_does_not_count(field: str) -> None:
    """Nor how it is sampled from."""
    assert fingerprint(MemoryCheckpoint(held(), **{**CONFIG, field: "other"})) == USUAL


def test_what_is_computed_counts() -> None:
    """Fields, names, dtypes, shapes and the numbers at the beginning of tensors."""
    tensors = held()
    first, *_ = tensors
    others = [
        MemoryCheckpoint(tensors, **{**CONFIG, "rms_norm_eps": 1e-5}),
        MemoryCheckpoint({("x" if name == first else name): one for name, one in tensors.items()}, **CONFIG),
        MemoryCheckpoint({**tensors, first: tensors[first].to(torch.bfloat16)}, **CONFIG),
        MemoryCheckpoint({**tensors, first: tensors[first].T}, **CONFIG),
        MemoryCheckpoint({**tensors, first: tensors[first] + 1}, **CONFIG),
    ]
    found = {fingerprint(one) for one in others}
    assert len(found) == len(others)
    assert USUAL not in found


def test_only_samples_are_read() -> None:
    """Of eight tensors at most."""
    asked: list[tuple[str, int]] = []

    class Watched(MemoryCheckpoint):
        def sample(self, name: str, size_bytes: int) -> bytes:
            asked.append((name, size_bytes))
            return super().sample(name, size_bytes)

    checkpoint = Watched(held(40), **CONFIG)
    fingerprint(checkpoint)
    assert len(asked) == SAMPLED_TENSORS
    assert {size for _, size in asked} == {SAMPLE_BYTES}
    assert checkpoint.bytes_read == 0
