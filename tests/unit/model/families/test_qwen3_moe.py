"""Qwen 3 MoE: which blocks have experts."""

from __future__ import annotations

import pytest

from shoal.errors import UnsupportedModel
from shoal.model.families import TensorSource
from shoal.model.families.gguf_mapping import GgufFields
from shoal.model.families.qwen3_moe import GGUF
from tests.unit.model.families.configurations import GgufMemory, model, tensors

EXPERTS = {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 40, "norm_topk_prob": False}


@pytest.mark.parametrize(
    ("fields", "mixed"),
    [
        ({}, [True] * 4),
        ({"decoder_sparse_step": 2}, [False, True, False, True]),
        ({"mlp_only_layers": [1]}, [True, False, True, True]),
        ({"decoder_sparse_step": 2, "mlp_only_layers": [3]}, [False, True, False, False]),
    ],
)
def test_blocks_with_experts(fields: dict[str, object], mixed: list[bool]) -> None:
    """Every n-th, but for those that are named."""
    config = model("qwen3_moe", **EXPERTS, **fields)
    assert [config.block_config(index).moe is not None for index in range(4)] == mixed
    for index, has_experts in enumerate(mixed):
        assert ("experts.2.down.weight" in tensors(config, index)) == has_experts
        assert ("down.weight" in tensors(config, index)) != has_experts


def test_experts_have_a_width_of_their_own() -> None:
    """And the dense blocks the MLP's."""
    config = model("qwen3_moe", **EXPERTS, mlp_only_layers=[0])
    assert tensors(config, 0)["gate.weight"] == TensorSource("model.layers.0.mlp.gate_proj.weight", (96, 64))
    name = "model.layers.1.mlp.experts.2.gate_proj.weight"
    assert tensors(config, 1)["experts.2.gate.weight"] == TensorSource(name, (40, 64))
    assert tensors(config, 1)["router.weight"] == TensorSource("model.layers.1.mlp.gate.weight", (3, 64))


def test_whether_scores_add_up_to_one() -> None:
    """As the configuration says; GGUF files, which do not say, are of models where they do."""
    assert not model("qwen3_moe", **EXPERTS).block.moe.normalized  # type: ignore[union-attr]
    assert GGUF.config(GgufFields(GgufMemory("qwen3moe"), "qwen3moe"))["norm_topk_prob"] is True


def test_windows_are_refused() -> None:
    """No model of the family has them."""
    with pytest.raises(UnsupportedModel, match="use_sliding_window"):
        model("qwen3_moe", **EXPERTS, use_sliding_window=True)
