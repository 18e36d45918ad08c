"""DeepSeek: latent attention, groups of experts, and the two forms of its GGUF files."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from shoal.errors import UnsupportedModel
from shoal.model.families import gguf_family
from shoal.model.families.deepseek import gguf_piece, gguf_v2, gguf_v3
from shoal.model.families.gguf_mapping import GgufFields
from shoal.model.nn.mla import LatentConfig
from tests.unit.model.families.configurations import GgufMemory, counted, model, taken, tensors

LATENT: dict[str, Any] = {
    "q_lora_rank": None,
    "kv_lora_rank": 20,
    "qk_nope_head_dim": 10,
    "qk_rope_head_dim": 6,
    "v_head_dim": 14,
    "moe_intermediate_size": 30,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
}
GROUPS = {"n_group": 4, "topk_group": 2}


def test_one_key_head_is_cached_the_latent_vector() -> None:
    """With the part that turns; scores are scaled by the width of a head as it would be."""
    block = model("deepseek_v2", **LATENT).block
    assert block.latent == LatentConfig(0, 20, 10, 6, 14)
    assert (block.num_kv_heads, block.head_dim, block.rotary_dim) == (1, 26, 6)
    assert block.query_scale == pytest.approx(16**-0.5)
    yarn = {"rope_type": "yarn", "factor": 4.0, "mscale_all_dim": 1.0}
    stretched = model("deepseek_v2", **LATENT, rope_parameters=yarn).block
    assert stretched.query_scale == pytest.approx(16**-0.5 * (0.1 * torch.tensor(4.0).log().item() + 1) ** 2)


def test_the_first_blocks_are_dense() -> None:
    """The others have experts beside shared ones."""
    config = model("deepseek_v2", **LATENT)
    assert [config.block_config(index).moe is None for index in range(4)] == [True, False, False, False]
    assert "gate.weight" in tensors(config, 0)
    assert tensors(config, 1)["shared.gate.weight"].shape == (60, 64)
    assert tensors(config, 1)["experts.7.gate.weight"].shape == (30, 64)


def test_groups_count_only_for_the_method_that_has_them() -> None:
    """V2 Lite chooses greedily among all; V3 has a bias for choosing."""
    greedy = model("deepseek_v2", **LATENT, **GROUPS).block_config(1).moe
    grouped = model("deepseek_v2", **LATENT, **GROUPS, topk_method="group_limited_greedy").block_config(1).moe
    assert greedy is not None
    assert grouped is not None
    assert (greedy.num_groups, grouped.num_groups, grouped.groups_per_token) == (1, 4, 2)
    config = model("deepseek_v3", **LATENT, **GROUPS)
    third = config.block_config(1).moe
    assert third is not None
    assert (third.scores, third.normalized, third.correction, third.scale) == ("sigmoid", True, True, 2.5)
    assert tensors(config, 1)["router.correction"].shape == (8,)
    for fields in ({"norm_topk_prob": True}, {"scoring_func": "sigmoid"}, {"moe_layer_freq": 2}):
        with pytest.raises(UnsupportedModel, match=next(iter(fields))):
            model("deepseek_v2", **LATENT, **fields)


def test_what_turns_is_brought_from_pairs_into_halves() -> None:
    """The last dimensions of each query head, and of the latent projection."""
    found = tensors(model("deepseek_v2", **LATENT))
    order = [*range(10), 10, 12, 14, 11, 13, 15]
    assert torch.equal(taken(found["q.weight"], counted(64, 64)), counted(4, 16, 64)[:, order].flatten(0, 1))
    order = [*range(20), 20, 22, 24, 21, 23, 25]
    assert torch.equal(taken(found["kv_a.weight"], counted(26, 64)), counted(26, 64)[order])
    assert {"q_a.weight", "q_a_norm.weight", "q_b.weight"} < tensors(
        model("deepseek_v2", **{**LATENT, "q_lora_rank": 24})
    ).keys()


def test_the_gating_function_tells_v2_from_v3() -> None:
    """Both files say "deepseek2"."""
    assert gguf_family(GgufMemory("deepseek2", expert_gating_func=1))[0].model_type == "deepseek_v2"
    assert gguf_family(GgufMemory("deepseek2"))[0].model_type == "deepseek_v2"
    assert gguf_family(GgufMemory("deepseek2", expert_gating_func=2))[0].model_type == "deepseek_v3"


def test_files_of_both_forms_state_the_same() -> None:
    """Older ones the width of a head, newer ones that of the latent vector beside it."""
    lengths = {"attention__key_length": 16, "attention__value_length": 14}
    old = GgufMemory("deepseek2", rope__dimension_count=6, **lengths)
    newer = {"attention__key_length_mla": 16, "attention__value_length_mla": 14, "attention__key_length": 26}
    new = GgufMemory("deepseek2", rope__dimension_count=6, attention__value_length=20, **newer)
    for file in (old, new):
        fields = gguf_v2(GgufFields(file, "deepseek2"))
        assert (fields["qk_nope_head_dim"], fields["qk_rope_head_dim"], fields["v_head_dim"]) == (10, 6, 14)
        assert "head_dim" not in fields
    assert gguf_v2(GgufFields(old, "deepseek2"))["topk_method"] == "greedy"
    grouped = GgufMemory("deepseek2", expert_group_count=4)
    assert gguf_v2(GgufFields(grouped, "deepseek2"))["topk_method"] == "group_limited_greedy"
    assert gguf_v3(GgufFields(grouped, "deepseek2"))["topk_method"] == "noaux_tc"


def test_keys_and_values_are_put_together_from_gguf() -> None:
    """Head by head, the keys transposed."""
    both = counted(4, 24, 20)
    parts = {
        "blk.1.attn_k_b.weight": both[:, :10].transpose(1, 2),
        "blk.1.attn_v_b.weight": both[:, 10:],
        "blk.1.exp_probs_b.bias": counted(8),
    }
    file, name = GgufMemory("deepseek2", parts), "model.layers.1.self_attn.kv_b_proj.weight"
    piece = gguf_piece(file, name)
    assert piece is not None
    assert piece.restore is not None
    assert torch.equal(piece.restore([file.read(part) for part in piece.names]), both.flatten(0, 1))
    assert gguf_piece(file, "model.layers.1.mlp.gate.e_score_correction_bias") == (
        ("blk.1.exp_probs_b.bias",),
        None,
        None,
    )
    assert gguf_piece(file, "model.layers.2.self_attn.kv_b_proj.weight") is None
