"""Quantized layers become the numbers that their formats' descriptions give, bit for bit; damaged ones are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.errors import CheckpointError, UnsupportedModel
from shoal.model.quant import awq, compressed_tensors, exl2, gptq
from shoal.model.quant.compressed_tensors import PackedForm
from shoal.model.quant.gptq import GptqForm
from tests.support.quantized_files import Layer, awq_layer, compressed_layer, exl2_layer, gptq_layer

KEY = "model.layers.0.mlp.up_proj"


def same(found: Any, expected: Any) -> bool:
    """Whether both have the same dtype, shape and bits."""
    return found.dtype == expected.dtype and found.shape == expected.shape and found.tobytes() == expected.tobytes()


@st.composite
def exl2_groups(draw: st.DrawFn) -> list[tuple[int, int]]:
    """Falling widths; groups of 32, 64 or 128 inputs, of 16 with two bits, and a shorter last one."""
    widths = sorted(draw(st.lists(st.sampled_from(exl2.WIDTHS), min_size=1, max_size=4)), reverse=True)
    return [(bits, draw(st.sampled_from((16, 32, 64) if bits == 2 else (32, 64, 128)))) for bits in widths]


@settings(max_examples=60, deadline=None)
@given(exl2_groups(), st.integers(1, 3), st.integers(0, 2**32 - 1), st.sampled_from((3e-5, 0.0008, 0.02, 1.0, 300.0)))
def test_exl2(groups: list[tuple[int, int]], panels: int, seed: int, largest: float) -> None:
    """All widths and group sizes, maxima whose units are subnormal among them."""
    layer = exl2_layer(np.random.default_rng(seed), KEY, groups, 32 * panels, largest)
    assert same(exl2.dequantize(layer.tensors, KEY), layer.weights)
    odd = 32 * panels - 7
    assert same(exl2.dequantize(layer.tensors, KEY, odd), layer.weights[:, :odd])


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(gptq.WIDTHS),
    st.sampled_from((16, 32, 128)),
    st.integers(1, 4),
    st.integers(1, 2),
    st.booleans(),
    st.integers(0, 1),
    st.integers(0, 2**32 - 1),
)
def test_gptq(bits: int, group: int, words: int, panels: int, ordered: bool, offset: int, seed: int) -> None:
    """All widths and both versions; groups in order of inputs or of activations; a last group that may be shorter."""
    layer = gptq_layer(np.random.default_rng(seed), KEY, bits, group, 32 * words, 32 * panels, ordered, offset)
    assert same(gptq.dequantize(layer.tensors, KEY, GptqForm(bits, offset)), layer.weights)


@pytest.mark.parametrize("group", [16, 32, 96])
def test_awq(group: int) -> None:
    """Outputs are mixed inside a word."""
    layer = awq_layer(np.random.default_rng(group), KEY, group, 96, 40)
    assert same(awq.dequantize(layer.tensors, KEY), layer.weights)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from((4, 8)),
    st.sampled_from((16, 32, 1000)),
    st.integers(1, 6),
    st.integers(1, 40),
    st.booleans(),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_compressed_tensors(
    bits: int, group: int, eights: int, outputs: int, symmetric: bool, ordered: bool, seed: int
) -> None:
    """Per group or per output, symmetric or not, in order or not; any number of outputs."""
    rng = np.random.default_rng(seed)
    layer = compressed_layer(rng, KEY, bits, group, 8 * eights, outputs, symmetric, ordered)
    form = PackedForm(bits, symmetric, group if ordered else None)
    assert same(compressed_tensors.dequantize(layer.tensors, KEY, form), layer.weights)


def an_exl2() -> Layer:
    """Groups of three widths."""
    return exl2_layer(np.random.default_rng(0), KEY, [(6, 32), (3, 64), (3, 32), (2, 32)], 32)


Change = Callable[[dict[str, Any]], None]


def put(name: str, value: Callable[[Any], Any]) -> Change:
    """One tensor made another one."""

    def change(tensors: dict[str, Any]) -> None:
        tensors[f"{KEY}.{name}"] = value(tensors[f"{KEY}.{name}"].copy())

    return change


def at(index: Any, number: float) -> Callable[[Any], Any]:
    """One number made another one."""

    def changed(array: Any) -> Any:
        array[index] = number
        return array

    return changed


EXL2_LIES: dict[str, tuple[Change, str]] = {
    "no groups": (put("q_groups", lambda array: array[:0]), "q_groups has 0 numbers"),
    "half a group": (put("q_groups", lambda array: array[:3]), "q_groups has 3 numbers"),
    "seven bits": (put("q_groups", at(0, 7)), "q_groups has widths"),
    "no bits": (put("q_groups", at(6, 0)), "q_groups has widths"),
    "rising widths": (put("q_groups", at(0, 2)), "q_groups has widths"),
    "a first row": (put("q_groups", at(1, 1)), "do not follow each other"),
    "equal rows": (put("q_groups", at(3, 0)), "do not follow each other"),
    "rows beyond the end": (put("q_groups", at(7, 10_000)), "do not follow each other"),
    "rows that are no codes": (put("q_groups", at(3, 7)), "which are not 160 in all"),
    "words too many": (put("q_weight", lambda array: np.concatenate([array, array[:1]])), "which are not 160 in all"),
    "words too few": (put("q_weight", lambda array: array[:-1]), "which are not 160 in all"),
    "words of 64 bits": (put("q_weight", lambda array: array.astype(np.int64)), "q_weight is int64"),
    "one dimension": (put("q_weight", lambda array: array[:, 0]), "q_weight is int32 of"),
    "steps of other outputs": (put("q_scale", lambda array: array[:, :-1]), "q_scale is of"),
    "outputs that are not whole words": (put("q_weight", lambda array: array[:, :-1]), "q_scale is of"),
    "a scale that is none": (put("q_scale_max", at(1, np.nan)), "not finite"),
    "an endless scale": (put("q_scale_max", at(0, np.inf)), "not finite"),
    "a negative scale": (put("q_scale_max", at(0, -1)), "negative"),
    "scales of other groups": (put("q_scale_max", lambda array: array[:-1]), "q_scale_max is"),
    "an input twice": (put("q_invperm", at(0, 5)), "no permutation"),
    "an input that is not there": (put("q_invperm", at(0, 160)), "no permutation"),
    "a negative input": (put("q_invperm", at(0, -1)), "no permutation"),
    "no order": (lambda tensors: tensors.pop(f"{KEY}.q_invperm"), "there is no tensor"),
}


@pytest.mark.parametrize("lie", EXL2_LIES)
def test_exl2_that_cannot_be(lie: str) -> None:
    """Each is refused with the tensor's name."""
    tensors = dict(an_exl2().tensors)
    change, said = EXL2_LIES[lie]
    change(tensors)
    with pytest.raises(CheckpointError, match=said) as refused:
        exl2.dequantize(tensors, KEY)
    assert KEY in str(refused.value)


@pytest.mark.parametrize("outputs", [-1, 0, 33])
def test_outputs_that_exl2_does_not_have(outputs: int) -> None:
    """What is filled up is less than 32."""
    with pytest.raises(CheckpointError, match="32 outputs"):
        exl2.dequantize(an_exl2().tensors, KEY, outputs)


GPTQ_LIES: dict[str, tuple[Change, str]] = {
    "zeros of other outputs": (put("qzeros", lambda array: array[:, :-1]), "does not fit"),
    "no groups": (put("qzeros", lambda array: array[:0]), "scales"),
    "scales of other groups": (put("scales", lambda array: array[:1]), "scales"),
    "scales that are none": (put("scales", at((0, 0), np.nan)), "not finite"),
    "a group that is not there": (put("g_idx", at(3, 7)), "does not name a group"),
    "a negative group": (put("g_idx", at(3, -1)), "does not name a group"),
    "a group without inputs": (put("g_idx", lambda array: array * 0), "without inputs"),
    "inputs too few": (put("g_idx", lambda array: array[:-1]), "does not name a group"),
    "nothing": (put("qweight", lambda array: array[:0]), "0 rows"),
}


@pytest.mark.parametrize("lie", GPTQ_LIES)
def test_gptq_that_cannot_be(lie: str) -> None:
    """Each is refused."""
    tensors = dict(gptq_layer(np.random.default_rng(0), KEY, 4, 32, 64, 32, False).tensors)
    change, said = GPTQ_LIES[lie]
    change(tensors)
    with pytest.raises(CheckpointError, match=said):
        gptq.dequantize(tensors, KEY)


def test_awq_that_cannot_be() -> None:
    """Groups that do not divide the inputs, scales that do not fit."""
    tensors = awq_layer(np.random.default_rng(0), KEY, 32, 96, 40).tensors
    for part, rows in (("qzeros", 2), ("qzeros", 0), ("scales", 2)):
        with pytest.raises(CheckpointError):
            awq.dequantize({**tensors, f"{KEY}.{part}": tensors[f"{KEY}.{part}"][:rows]}, KEY)


COMPRESSED_LIES: dict[str, tuple[Change, str]] = {
    "another shape": (put("weight_shape", at(0, 7)), "weight_packed"),
    "a negative shape": (put("weight_shape", at(1, -16)), "weight_shape"),
    "no shape": (put("weight_shape", lambda array: array[:1]), "weight_shape"),
    "an enormous shape": (put("weight_shape", at(1, 2**62)), "weight_packed"),
    "scales of other outputs": (put("weight_scale", lambda array: array[:3]), "weight_scale"),
    "no scales": (put("weight_scale", lambda array: array[:, :0]), "weight_scale"),
    "zeros of other groups": (put("weight_zero_point", lambda array: array[:, :1]), "weight_zero_point"),
    "a group that is not there": (put("weight_g_idx", at(0, 99)), "does not name a group"),
}


@pytest.mark.parametrize("lie", COMPRESSED_LIES)
def test_compressed_tensors_that_cannot_be(lie: str) -> None:
    """Each is refused."""
    layer = compressed_layer(np.random.default_rng(0), KEY, 4, 16, 64, 10, False, False)
    tensors = dict(layer.tensors)
    change, said = COMPRESSED_LIES[lie]
    change(tensors)
    with pytest.raises(CheckpointError, match=said):
        compressed_tensors.dequantize(tensors, KEY, PackedForm(4, False))


def test_forms_that_are_not_read() -> None:
    """The error says what is."""
    with pytest.raises(UnsupportedModel, match="5 bits"):
        gptq.gptq_form({"bits": 5})
    with pytest.raises(UnsupportedModel, match="pack-quantized"):
        compressed_tensors.packed_form({"format": "float-quantized", "config_groups": {}})
    with pytest.raises(UnsupportedModel, match="3 bits"):
        weights = {"num_bits": 3, "type": "int"}
        compressed_tensors.packed_form({"format": "pack-quantized", "config_groups": {"a": {"weights": weights}}})
