"""Streams of panels: where everything lies, and that it comes back."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from shoal.model.kernels.panel_stream import (
    LINE,
    NIBBLES,
    PANEL,
    STEP,
    UNSIGNED,
    StreamForm,
    in_streams,
    outputs_of,
    places_of,
)
from shoal.model.quant.packed_matrix import WIDTHS
from tests.support import packed_matrices

FORM = StreamForm(
    bits=3,
    steps=5,
    group=64,
    unit_groups=2,
    unit_kind=0,
    step_kind=UNSIGNED,
    squared=False,
    minima=True,
    zero_kind=NIBBLES,
    zero=0,
    shared=False,
)


def test_levels_come_first_and_codes_begin_at_a_line() -> None:
    """Units of scales and minima where they change, then steps, then zeros; of 64 outputs each."""
    places = places_of(FORM)
    assert places.units == [0, 576]
    assert places.minimum_units[0] == 128
    assert places.steps[0] == 256
    assert places.minimum_steps[0] == 256 + PANEL
    assert places.zeros[0] == 256 + 2 * PANEL
    assert (len(places.units), len(places.steps), len(places.codes)) == (2, 3, 5)
    assert all(at % LINE == 0 for at in places.codes)
    assert np.diff(places.codes).tolist() == [3 * PANEL * 4] * 4
    assert places.size == places.codes[-1] + 3 * PANEL * 4


@pytest.mark.parametrize("bits", WIDTHS)
def test_a_quad_has_its_codes_in_a_word_s_bytes(bits: int) -> None:
    """Plane by plane: the one input of one output that is not zero."""
    section = packed_matrices.section("plain", 1, PANEL, STEP, bits, STEP)
    for given, lane in ((0, 0), (7, 63), (30, 5)):
        codes = torch.zeros(PANEL, STEP, dtype=torch.uint8)
        codes[lane, given] = (1 << bits) - 1
        matrix = packed_matrices.matrix(1, PANEL, (section,))._replace(codes=codes)
        streams = in_streams(matrix)
        words = streams.data[0, -bits * PANEL * 4 :].numpy().view("<u4").reshape(bits, PANEL)
        assert not np.delete(words, lane, 1).any()
        word, quad, byte = 0, given // 4, given % 4
        for width in {2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 8: (8,)}[bits]:
            each = 8 // width
            expected = ((1 << width) - 1) << (8 * byte + width * (quad % each))
            assert words[word + quad // each, lane] == expected
            word += width


@pytest.mark.parametrize("form", packed_matrices.FORMS)
def test_outputs_come_back(form: str) -> None:
    """Codes and levels, of outputs in any order."""
    matrix = packed_matrices.of_form(form, 150, 96)
    found = outputs_of(in_streams(matrix), [149, 3, 64, 3])
    chosen = matrix.chosen(torch.tensor([149, 3, 64, 3]))
    assert torch.equal(found.codes, chosen.codes)
    assert torch.equal(found.weights(), chosen.weights())


def test_inputs_in_another_order() -> None:
    """An order is kept, with −1 where groups are filled up; without one there is none but for such places."""
    matrix = packed_matrices.mixed(70, 150)
    streams = in_streams(matrix)
    assert streams.order is not None
    assert matrix.order is not None
    kept = streams.order[streams.order >= 0]
    assert torch.equal(kept.long(), matrix.order)
    assert torch.equal(outputs_of(streams, [1]).weights(), matrix.chosen(torch.tensor([1])).weights())
    assert in_streams(packed_matrices.of_form("plain", 8, 70, 4, 32)).order is None
    filled = in_streams(packed_matrices.of_form("plain", 8, 70, 4, 24)).order
    assert filled is not None
    assert filled[24:33].tolist() == [-1] * 8 + [24]


def test_groups_that_fill_a_step_up_have_units() -> None:
    """Those that all outputs share are as many as the groups with them: the kernels read one for each."""
    streams = in_streams(packed_matrices.of_form("squared", 8, 48, 4, 16))
    (section,) = streams.sections
    assert section.units is not None
    assert (section.form.groups, section.units.shape) == (4, (4,))
