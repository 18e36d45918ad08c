"""AWQ layers become the numbers that the format's description gives, bit for bit; damaged ones are refused."""

from __future__ import annotations

import numpy as np
import pytest

from shoal.errors import CheckpointError
from shoal.model.quant import awq
from tests.support.quantized_files import awq_layer
from tests.unit.model.quant.damage import KEY, same


@pytest.mark.parametrize("group", [16, 32, 96])
def test_awq(group: int) -> None:
    """Outputs are mixed inside a word."""
    layer = awq_layer(np.random.default_rng(group), KEY, group, 96, 40)
    assert same(awq.dequantize(layer.tensors, KEY), layer.weights)


def test_awq_that_cannot_be() -> None:
    """Groups that do not divide the inputs, scales that do not fit."""
    tensors = awq_layer(np.random.default_rng(0), KEY, 32, 96, 40).tensors
    for part, rows in (("qzeros", 2), ("qzeros", 0), ("scales", 2)):
        with pytest.raises(CheckpointError):
            awq.dequantize({**tensors, f"{KEY}.{part}": tensors[f"{KEY}.{part}"][:rows]}, KEY)
