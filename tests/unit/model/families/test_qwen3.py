"""Qwen 3's norms of q and k."""

from __future__ import annotations

from shoal.model.families import TensorSource
from tests.unit.model.families.configurations import model, tensors


def test_q_and_k_are_normed_head_by_head() -> None:
    """With weights as wide as a head."""
    config = model("qwen3", head_dim=32)
    assert config.block.qk_norm == "head"
    found = tensors(config, 2)
    assert found["query_norm.weight"] == TensorSource("model.layers.2.self_attn.q_norm.weight", (32,))
    assert found["key_norm.weight"] == TensorSource("model.layers.2.self_attn.k_norm.weight", (32,))


def test_there_are_no_biases_unless_the_file_says_so() -> None:
    """Then o has one too."""
    assert not [role for role in tensors(model("qwen3")) if role.endswith("bias")]
    assert {"q.bias", "o.bias"} < tensors(model("qwen3", attention_bias=True)).keys()


def test_windows_are_qwen_2s() -> None:
    """With the norms."""
    config = model("qwen3", use_sliding_window=True, sliding_window=9, max_window_layers=1)
    assert [(one.window, one.qk_norm) for one in config.distinct_blocks] == [(0, "head"), (9, "head")]
