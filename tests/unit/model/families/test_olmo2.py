"""OLMo 2's norms."""

from __future__ import annotations

from shoal.model.families import TensorSource
from tests.unit.model.families.configurations import model, tensors


def test_norms_stand_after_attention_and_mlp() -> None:
    """And none before them."""
    config = model("olmo2")
    assert (config.block.pre_norms, config.block.post_norms, config.block.qk_norm) == (False, True, "full")
    found = tensors(config, 1)
    assert not {"attention_norm.weight", "mlp_norm.weight"} & found.keys()
    assert found["post_attention_norm.weight"].name == "model.layers.1.post_attention_layernorm.weight"
    assert found["post_mlp_norm.weight"].name == "model.layers.1.post_feedforward_layernorm.weight"


def test_q_and_k_are_normed_over_all_heads() -> None:
    """Weights as wide as all query heads, and as all key heads."""
    found = tensors(model("olmo2"))
    assert found["query_norm.weight"] == TensorSource("model.layers.0.self_attn.q_norm.weight", (64,))
    assert found["key_norm.weight"] == TensorSource("model.layers.0.self_attn.k_norm.weight", (32,))
