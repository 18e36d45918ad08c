"""Mistral's window."""

from __future__ import annotations

import msgspec
import pytest

from shoal.errors import CheckpointError
from tests.unit.model.families.configurations import model, tensors


def test_a_window_is_all_that_tells_it_from_llama() -> None:
    """The first version has one; later ones say null."""
    windowed, plain = model("mistral", sliding_window=40), model("mistral", sliding_window=None)
    assert windowed.block.window == 40
    assert plain.block == msgspec.structs.replace(windowed.block, window=0) == model("llama").block
    assert tensors(plain) == tensors(model("llama"))


def test_a_window_of_nothing_cannot_be() -> None:
    """A row sees at least itself."""
    with pytest.raises(CheckpointError, match="sliding_window is 0"):
        model("mistral", sliding_window=0)
