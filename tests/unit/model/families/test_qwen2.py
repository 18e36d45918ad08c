"""Qwen 2: biases of q, k and v, and windows from a block on."""

from __future__ import annotations

import pytest

from shoal.errors import UnsupportedModel
from tests.unit.model.families.configurations import model, tensors


def test_q_k_and_v_have_biases() -> None:
    """And nothing else."""
    assert {role for role in tensors(model("qwen2")) if role.endswith("bias")} == {"q.bias", "k.bias", "v.bias"}


def test_a_window_counts_only_where_it_is_switched_on() -> None:
    """Qwen 2.5's files state one that is not used."""
    assert model("qwen2", sliding_window=40).block.window == 0
    assert not model("qwen2", sliding_window=40).layer_types
    assert not model("qwen2", use_sliding_window=True, sliding_window=None).layer_types


def test_windows_begin_at_a_block_or_where_the_types_say() -> None:
    """`layer_types` goes before `max_window_layers`."""
    fields = {"use_sliding_window": True, "sliding_window": 40, "max_window_layers": 3}
    config = model("qwen2", **fields)
    assert [config.block_config(index).window for index in range(4)] == [0, 0, 0, 40]
    types = ["sliding_attention", "full_attention"] * 2
    config = model("qwen2", **fields, layer_types=types)
    assert [config.block_config(index).window for index in range(4)] == [40, 0, 40, 0]
    assert config.block == config.block_config(1)
    with pytest.raises(UnsupportedModel, match="chunked"):
        model("qwen2", **fields, layer_types=["chunked_attention"] * 4)
