"""EXL2 layers become the numbers that the format's description gives, bit for bit; damaged ones are refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.errors import CheckpointError
from shoal.model.quant import exl2
from tests.support.quantized_files import Layer, exl2_layer
from tests.unit.model.quant.damage import KEY, Change, at, put, same


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


def an_exl2() -> Layer:
    """Groups of three widths."""
    return exl2_layer(np.random.default_rng(0), KEY, [(6, 32), (3, 64), (3, 32), (2, 32)], 32)


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
