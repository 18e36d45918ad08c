"""Strings of bits in words are those of whole numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.model.quant.bit_strings import pack_across, pack_down, unpack_across, unpack_down
from tests.support.quantized_files import string_words


@given(st.integers(1, 8), st.integers(1, 100), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_codes_come_out_as_they_went_in(bits: int, count: int, columns: int, seed: int) -> None:
    """Of any width and number, downwards and to the right."""
    codes = np.random.default_rng(seed).integers(0, 1 << bits, (count, columns), dtype=np.uint8)
    words = np.array([string_words(codes[:, column].tolist(), bits) for column in range(columns)], np.uint32)
    assert np.array_equal(unpack_across(words, bits, count), codes.T)
    assert np.array_equal(unpack_down(np.ascontiguousarray(words.T), bits, count), codes)
    assert np.array_equal(pack_down(codes, bits), words.T)
    assert np.array_equal(pack_across(np.ascontiguousarray(codes.T), bits), words)


def test_too_few_words() -> None:
    """Are named."""
    with pytest.raises(ValueError, match="3 words hold no 33 codes of 3 bits"):
        unpack_down(np.zeros((3, 1), np.uint32), 3, 33)
