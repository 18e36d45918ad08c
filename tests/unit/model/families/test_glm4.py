"""GLM 4: four norms, and halves of heads that turn in pairs."""

from __future__ import annotations

import torch

from tests.unit.model.families.configurations import counted, model, taken, tensors


def test_half_of_each_head_turns() -> None:
    """Unless the file says how much."""
    assert model("glm4", head_dim=16).block.rotary_dim == 8
    assert model("glm4", head_dim=16, partial_rotary_factor=0.25).block.rotary_dim == 4


def test_what_turns_is_brought_from_pairs_into_halves() -> None:
    """Of q, k and their biases; v is as it is stored."""
    found = tensors(model("glm4", head_dim=16))
    order = [0, 2, 4, 6, 1, 3, 5, 7, *range(8, 16)]
    heads = taken(found["k.bias"], counted(32)).view(2, 16)
    assert torch.equal(heads, counted(2, 16)[:, order])
    assert torch.equal(taken(found["q.weight"], counted(64, 64)), counted(4, 16, 64)[:, order].flatten(0, 1))
    assert found["v.weight"].take is None
    assert "o.bias" not in found


def test_four_norms_and_a_fused_mlp() -> None:
    """Under names of its own."""
    found = tensors(model("glm4"), 1)
    assert found["post_attention_norm.weight"].name == "model.layers.1.post_self_attn_layernorm.weight"
    assert found["mlp_norm.weight"].name == "model.layers.1.post_attention_layernorm.weight"
    assert found["post_mlp_norm.weight"].name == "model.layers.1.post_mlp_layernorm.weight"
    assert found["gate.weight"].name == found["up.weight"].name == "model.layers.1.mlp.gate_up_proj.weight"
