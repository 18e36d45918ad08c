"""Weights by role."""

from __future__ import annotations

import pytest
import torch

from shoal.engine.proof import numbers
from shoal.model.kernels.linears import torch_linear
from shoal.model.kernels.quantized import quantize
from shoal.model.nn.block_weights import BlockWeights

GATE, UP, NORM = numbers(1, 5, 8), numbers(2, 3, 8), numbers(3, 8)


def test_matrices_and_vectors_are_told_apart() -> None:
    """By their dimensions; codes are a matrix."""
    weights = BlockWeights.of({"up.weight": quantize(UP, 8), "gate.weight": GATE, "norm.weight": NORM})
    assert weights.matrices.keys() == {"up.weight", "gate.weight"}
    assert torch.equal(weights.norm("norm"), NORM)
    assert weights.bias("up") is None
    with pytest.raises(KeyError):
        weights.matrix("down")


def test_floats_of_codes() -> None:
    """What they stand for."""
    codes = quantize(UP, 8)
    weights = BlockWeights.of({"a.weight": codes, "b.weight": UP})
    assert torch.equal(weights.floats("a"), codes.dequantized())
    assert torch.equal(weights.floats("b"), UP)


def test_layers_are_joined_each_padded_on_its_own() -> None:
    """One product whose parts begin at whole multiples; a bias is padded like its matrix."""
    weights = BlockWeights.of({"gate.weight": GATE, "up.weight": UP, "gate.bias": NORM[:5], "up.bias": NORM[:3]})
    linear, rows = weights.joined(("gate", "up"), torch_linear, 64), numbers(4, 4, 8)
    out = linear(rows)
    assert linear.out_features == 128
    torch.testing.assert_close(out[:, :5], rows @ GATE.T + NORM[:5])
    torch.testing.assert_close(out[:, 64:67], rows @ UP.T + NORM[:3])
    assert not out[:, 5:64].any()
    assert not out[:, 67:].any()


def test_a_layer_takes_what_another_pads() -> None:
    """Its inputs are filled up with zeros."""
    linear = BlockWeights.of({"down.weight": UP}).linear("down", torch_linear, 64)
    rows = torch.nn.functional.pad(numbers(4, 4, 8), (0, 56), value=7.0)
    assert linear.in_features == 64
    torch.testing.assert_close(linear(rows)[:, :3], rows[:, :8] @ UP.T)
