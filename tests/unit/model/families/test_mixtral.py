"""Mixtral's experts."""

from __future__ import annotations

from shoal.model.families import TensorSource, gguf_family
from shoal.model.nn.moe import MoeConfig
from tests.unit.model.families.configurations import GgufMemory, model, tensors


def test_experts_share_the_mlps_width_and_their_scores_add_up_to_one() -> None:
    """As many as the file says, under either name."""
    for name in ("num_local_experts", "num_experts"):
        block = model("mixtral", **{name: 6}, num_experts_per_tok=3).block
        assert block.moe == MoeConfig(6, 3, 96, normalized=True)
    assert model("mixtral").block.moe == MoeConfig(8, 2, 96, normalized=True)


def test_experts_have_their_old_names() -> None:
    """w1 is the gate, w3 goes up, w2 down; the router has no bias."""
    found = tensors(model("mixtral", num_local_experts=2), 1)
    inside = "model.layers.1.block_sparse_moe."
    assert found["router.weight"] == TensorSource(f"{inside}gate.weight", (2, 64))
    assert found["experts.1.gate.weight"] == TensorSource(f"{inside}experts.1.w1.weight", (96, 64))
    assert found["experts.1.up.weight"] == TensorSource(f"{inside}experts.1.w3.weight", (96, 64))
    assert found["experts.1.down.weight"] == TensorSource(f"{inside}experts.1.w2.weight", (64, 96))
    assert "router.bias" not in found


def test_a_gguf_file_of_llamas_architecture_with_experts_is_its() -> None:
    """The architecture's name alone does not tell."""
    assert gguf_family(GgufMemory("llama", expert_count=8))[0].model_type == "mixtral"
