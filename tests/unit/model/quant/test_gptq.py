"""GPTQ layers become the numbers that the format's description gives, bit for bit; damaged ones are refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.errors import CheckpointError, UnsupportedModel
from shoal.model.quant import gptq
from shoal.model.quant.gptq import GptqForm
from tests.support.quantized_files import gptq_layer
from tests.unit.model.quant.damage import KEY, Change, at, put, same


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


def test_forms_that_are_not_read() -> None:
    """The error says what is."""
    with pytest.raises(UnsupportedModel, match="5 bits"):
        gptq.gptq_form({"bits": 5})
    with pytest.raises(UnsupportedModel, match="dynamic"):
        gptq.gptq_form({"bits": 4, "dynamic": {"-:.*": {}}})


def test_the_form_of_a_configuration() -> None:
    """Both versions; all inputs share a scale where a group has −1."""
    assert gptq.gptq_form({"bits": 4, "group_size": 128}) == GptqForm(4, 1, 128)
    assert gptq.gptq_form({"bits": 3, "group_size": -1, "checkpoint_format": "gptq_v2"}) == GptqForm(3, 0, None)
