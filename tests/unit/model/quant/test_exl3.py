"""EXL3 layers become the numbers that the format's description gives, bit for bit; damaged ones are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.errors import CheckpointError
from shoal.model.quant import exl3
from tests.support.exl3_files import (
    CODEBOOKS,
    decoded,
    encoded_layer,
    exl3_layer,
    rotated,
    state_value,
    stored_tile,
)
from tests.support.quantized_files import Layer
from tests.unit.model.quant.damage import KEY, Change, at, put, same

SIZES = st.sampled_from((1, 100, 127, 128, 129, 200))


def a_layer(bits: int = 3, inputs: int = 256, outputs: int = 128, codebook: str = "mul1", older: bool = False) -> Layer:
    """Random, always the same."""
    return exl3_layer(np.random.default_rng(bits), KEY, bits, inputs, outputs, codebook, older)


@pytest.mark.parametrize("codebook", CODEBOOKS)
def test_every_state(codebook: str) -> None:
    """All 65,536 of a codebook."""
    expected = np.array([state_value(state, codebook) for state in range(1 << 16)])
    assert same(exl3.CODEBOOKS[codebook]().astype(np.float16), expected)


@pytest.mark.parametrize("codebook", CODEBOOKS)
@pytest.mark.parametrize("bits", exl3.WIDTHS)
def test_every_width_and_codebook(bits: int, codebook: str) -> None:
    """More than one rotation to either side, with scales and with signs alone."""
    for older in (False, True):
        layer = a_layer(bits, 256, 128, codebook, older)
        assert same(exl3.dequantize(layer.tensors, KEY), layer.weights)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(exl3.WIDTHS), st.sampled_from(CODEBOOKS), SIZES, SIZES, st.booleans(), st.integers(0, 2**32 - 1))
def test_exl3(bits: int, codebook: str, inputs: int, outputs: int, older: bool, seed: int) -> None:
    """What is filled up is cut away where the sizes are told, on either side alone too."""
    layer = exl3_layer(np.random.default_rng(seed), KEY, bits, inputs, outputs, codebook, older)
    found = exl3.dequantize(layer.tensors, KEY, outputs, inputs)
    assert same(found, layer.weights)
    assert same(exl3.dequantize(layer.tensors, KEY, outputs)[:inputs], found)
    assert same(exl3.dequantize(layer.tensors, KEY, inputs=inputs)[:, :outputs], found)
    matrix = exl3.read({name: torch.from_numpy(one) for name, one in layer.tensors.items()}, KEY, outputs, inputs)
    assert (matrix.shape, matrix.bits) == ((outputs, inputs), bits)
    assert same(matrix.dequantized().numpy(), layer.weights.T.copy())


def test_the_places_of_codes() -> None:
    """One bit of one code, in a tile whose other states are zero, moves the weights whose states hold it."""
    codes = [0] * 256
    codes[100] = 1
    tile = stored_tile(codes, 4).reshape(1, 1, -1).view("<u4")
    inner = exl3.rotated_weights(tile, "3inst").T.astype(np.float16)
    rows, columns = np.nonzero(inner != state_value(0, "3inst"))
    # Codes 100 to 103 are numbers 4 to 7 of lane 12: rows 0, 1, 8, 9 and column 3 + 8.
    assert sorted(zip(rows.tolist(), columns.tolist(), strict=True)) == [(0, 11), (1, 11), (8, 11), (9, 11)]
    assert [inner[row, 11] for row in (0, 1, 8, 9)] == [state_value(1 << shift, "3inst") for shift in (0, 4, 8, 12)]


def test_bits_do_not_depend_on_the_order_of_sums() -> None:
    """Rotated tile by tile and added up backwards: the same numbers, since all sums are exact."""
    layer = a_layer(5)
    words = layer.tensors[f"{KEY}.trellis"].view("<u4")
    inner = exl3.rotated_weights(words, "mul1").T
    turn = exl3.hadamard(128)
    sums = np.zeros_like(inner)
    for row in reversed(range(256)):
        first = row // 128 * 128
        sums[first : first + 128] += turn[:, row % 128, None] * (inner[row] @ turn)
    assert np.array_equal(sums / 128, rotated(inner))
    assert float(np.abs(inner).max()) < 4
    assert np.array_equal(np.rint(inner * 2**18), inner * 2**18)


def test_dead_outputs_and_inputs_are_zero() -> None:
    """A scale of zero is the format's way to say it; the others do not change."""
    layer = a_layer()
    for side, index in (("svh", np.s_[:, 7]), ("suh", np.s_[7])):
        tensors = dict(layer.tensors)
        put(side, at(7, 0))(tensors)
        expected = layer.weights.copy()
        expected[index] *= 0
        found = exl3.dequantize(tensors, KEY)
        assert np.array_equal(found, expected)
        assert not found[index].any()
        assert same(found, decoded(tensors, KEY))


def test_a_layer_of_zeros_has_no_outputs_scale() -> None:
    """The format's writer gives it zeros for `svh`, and scales for `suh`."""
    tensors = dict(a_layer().tensors)
    put("svh", lambda array: array * 0)(tensors)
    found = exl3.dequantize(tensors, KEY)
    assert found.shape == (256, 128)
    assert not found.any()


def test_what_a_weight_takes() -> None:
    """Bits, the scales' share, and what is filled up."""
    assert exl3.read(a_layer().tensors, KEY).bits_per_weight == 3 + 16 * (256 + 128) / (256 * 128)
    assert exl3.read(a_layer(older=True).tensors, KEY, 64).bits_per_weight > 6


@pytest.mark.parametrize("codebook", CODEBOOKS)
def test_what_the_tests_encode_is_near_what_it_was_made_of(codebook: str) -> None:
    """A bit takes away more than two thirds of the squared error: the trellis is searched as it is meant to be."""
    rng = np.random.default_rng(1)
    weights = rng.normal(0, 0.02, (128, 128)) * rng.uniform(0.5, 2, 128)
    weights[:, 5] = 0
    for bits in (1, 2, 3, 4):
        layer = encoded_layer(rng, KEY, weights, bits, codebook)
        found = exl3.dequantize(layer.tensors, KEY)
        assert same(found, layer.weights)
        assert not found[:, 5].any()
        error = float(((found - weights) ** 2).sum() / (weights**2).sum())
        assert error < 1.2 * 3.0**-bits


def with_flag(tensors: dict[str, Any]) -> None:
    """A second codebook."""
    tensors[f"{KEY}.mcg"] = np.array(1, np.int32)


def with_signs(tensors: dict[str, Any]) -> None:
    """Signs beside scales."""
    tensors[f"{KEY}.su"] = np.zeros(16, np.int16)


def without(name: str) -> Change:
    """A tensor that is not there."""
    return lambda tensors: tensors.pop(f"{KEY}.{name}")


EXL3_LIES: dict[str, tuple[Change, str]] = {
    "no trellis": (without("trellis"), "there is no tensor .*trellis"),
    "a trellis of words": (put("trellis", lambda array: array.astype(np.int32)), "trellis is int32"),
    "a trellis of floats": (put("trellis", lambda array: array.view(np.float16)), "trellis is float16"),
    "two dimensions": (put("trellis", lambda array: array[0]), "in 3 dimensions"),
    "no inputs": (put("trellis", lambda array: array[:0]), "0 inputs"),
    "no outputs": (put("trellis", lambda array: array[:, :0]), "0 outputs"),
    "inputs that are no whole rotation": (put("trellis", lambda array: array[:-1]), "240 inputs"),
    "outputs that are no whole rotation": (put("trellis", lambda array: array[:, :-1]), "112 outputs"),
    "no bits": (put("trellis", lambda array: array[:, :, :0]), "0 bits"),
    "half bits": (put("trellis", lambda array: array[:, :, :40]), r"2\.5 bits"),
    "nine bits": (put("trellis", lambda array: np.concatenate([array] * 3, 2)), "9 bits"),
    "inputs of another layer": (put("trellis", lambda array: array[:8]), "suh is"),
    "outputs of another layer": (put("trellis", lambda array: np.concatenate([array] * 2, 1)), "svh is"),
    "scales in fp32": (put("suh", lambda array: array.astype(np.float32)), "suh is"),
    "scales of whole numbers": (put("svh", lambda array: array.view(np.int16)), "svh is"),
    "too few scales": (put("suh", lambda array: array[:-1]), "suh is"),
    "a scale that is none": (put("suh", at(3, np.nan)), "suh has numbers that are not finite"),
    "an endless scale": (put("svh", at(3, np.inf)), "svh has numbers that are not finite"),
    "no scale but zero": (put("suh", lambda array: array * 0), "suh has no scale but zero"),
    "weights beyond fp16": (put("suh", lambda array: array * 0 + np.float16(60000)), "too large for fp16"),
    "neither scales nor signs": (without("svh"), "neither"),
    "scales and signs": (with_signs, "both"),
    "two codebooks": (with_flag, "two codebooks"),
    "a flag of floats": (put("mul1", lambda array: array.astype(np.float32)), "mul1 is float32"),
    "two flags": (put("mul1", lambda array: array.repeat(2)), "mul1 of .* is not one number"),
    "no flag": (put("mul1", lambda array: array[None][:0]), "mul1 of .* is not one number"),
}


@pytest.mark.parametrize("lie", EXL3_LIES)
def test_exl3_that_cannot_be(lie: str) -> None:
    """Each is refused with the layer's name."""
    tensors = dict(a_layer().tensors)
    change, said = EXL3_LIES[lie]
    change(tensors)
    with pytest.raises(CheckpointError, match=said) as refused:
        exl3.dequantize(tensors, KEY)
    assert KEY in str(refused.value)


@pytest.mark.parametrize(
    "change",
    [
        put("su", lambda array: array[:-1]),
        put("sv", lambda array: array.astype(np.int32)),
        put("su", lambda array: array[None]),
    ],
)
def test_signs_that_cannot_be(change: Change) -> None:
    """16 in a word, for all inputs and outputs."""
    tensors = dict(a_layer(older=True).tensors)
    change(tensors)
    with pytest.raises(CheckpointError, match=f"{KEY}.s[uv]"):
        exl3.dequantize(tensors, KEY)


@pytest.mark.parametrize(("outputs", "inputs"), [(-1, 256), (0, 256), (129, 256), (128, 128), (128, 257)])
def test_sizes_that_exl3_does_not_have(outputs: int, inputs: int) -> None:
    """What is filled up is less than 128."""
    with pytest.raises(CheckpointError, match=f"{KEY} has .*filled up to a multiple of 128"):
        exl3.dequantize(a_layer().tensors, KEY, outputs, inputs)
