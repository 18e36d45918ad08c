"""compressed-tensors layers become the numbers that the format's description gives; damaged ones are refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.errors import CheckpointError, UnsupportedModel
from shoal.model.quant import compressed_tensors
from shoal.model.quant.compressed_tensors import PackedForm
from tests.support.quantized_files import compressed_layer
from tests.unit.model.quant.damage import KEY, Change, at, put, same


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
    with pytest.raises(UnsupportedModel, match="pack-quantized"):
        compressed_tensors.packed_form({"format": "float-quantized", "config_groups": {}})
    with pytest.raises(UnsupportedModel, match="3 bits"):
        weights = {"num_bits": 3, "type": "int"}
        compressed_tensors.packed_form({"format": "pack-quantized", "config_groups": {"a": {"weights": weights}}})


def test_one_scale_for_a_matrix() -> None:
    """And one for each output, without a second dimension."""
    layer = compressed_layer(np.random.default_rng(0), KEY, 8, 64, 64, 10, True, True)
    one, tensors, name = np.array([0.5], np.float16), dict(layer.tensors), f"{KEY}.weight_scale"
    expected = compressed_tensors.dequantize({**tensors, name: np.repeat(one, 10)[:, None]}, KEY, PackedForm(8, True))
    for scales in (one, one.reshape(()), np.repeat(one, 10)):
        assert same(compressed_tensors.dequantize({**tensors, name: scales}, KEY, PackedForm(8, True)), expected)
