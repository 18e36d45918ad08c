"""Every GGUF type that is kept packed stands for the numbers that the gguf package gives, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from shoal.errors import CheckpointError
from shoal.model.quant import ggml

FLOATS = {"Q4_1": (0, 2), "Q5_1": (0, 2), "Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,)}
"""Where in a block its fp16 numbers lie, where it is not at the beginning; Q4_K and Q5_K have two there."""
ROWS, INPUTS = 6, 512


def floats_of(kind: str) -> tuple[int, ...]:
    """The places of a block's fp16 numbers."""
    return FLOATS.get(kind, (0, 2) if kind in ("Q4_K", "Q5_K") else (0,))


def random_bytes(kind: str, seed: int = 0) -> Any:
    """Blocks of any codes and steps whose fp16 numbers are finite, some of them subnormal and some negative."""
    rng = np.random.default_rng(seed)
    size = ggml.KINDS[kind].size_bytes
    blocks = rng.integers(0, 256, (ROWS * INPUTS // ggml.KINDS[kind].inputs, size), dtype=np.uint8)
    for at in floats_of(kind):
        numbers = rng.normal(size=(len(blocks), 1)) * rng.choice([1e-7, 1e-3, 1.0], (len(blocks), 1))
        blocks[:, at : at + 2] = numbers.astype(np.float16).view(np.uint8)
    return blocks.reshape(ROWS, -1)


@pytest.mark.parametrize("kind", ggml.KINDS)
def test_numbers_are_those_of_the_gguf_package(kind: str) -> None:
    """And a block has as many inputs and bytes as there."""
    data = random_bytes(kind)
    found = ggml.read(data.reshape(-1), kind, ROWS, INPUTS).dequantized().numpy()
    expected = dequantize(data, GGMLQuantizationType[kind])
    assert found.tobytes() == expected.astype(np.float32).tobytes()
    known = ggml.KINDS[kind]
    assert GGML_QUANT_SIZES[GGMLQuantizationType[kind]] == (known.inputs, known.size_bytes)


@pytest.mark.parametrize("kind", ggml.KINDS)
def test_bytes_that_are_no_matrix(kind: str) -> None:
    """Too few, too many, inputs that are no whole blocks, and numbers that are not finite."""
    data = random_bytes(kind)
    for wrong, inputs in ((data.reshape(-1)[:-1], INPUTS), (data.reshape(-1), INPUTS - 256), (data.reshape(-1), 500)):
        with pytest.raises(CheckpointError, match=kind):
            ggml.read(wrong, kind, ROWS, inputs)
    for at in floats_of(kind):
        spoiled = data.copy()
        spoiled[0, at : at + 2] = np.array([np.inf], np.float16).view(np.uint8)
        with pytest.raises(CheckpointError, match="not finite"):
            ggml.read(spoiled.reshape(-1), kind, ROWS, INPUTS)
