"""What holds of every family's description."""

from __future__ import annotations

import pytest

from shoal.model.families import FAMILIES, family
from shoal.model.families.family import Family
from tests.unit.model.families.configurations import model

EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}


@pytest.mark.parametrize("one", FAMILIES.values(), ids=lambda one: one.model_type)
def test_rows_are_rounded_only_where_it_is_safe(one: Family) -> None:
    """fp32 always; with experts nothing else, since a rounded row may go to another one; never fp16 alone."""
    assert one.row_codecs[0] == "fp32"
    has_experts = any(block.moe is not None for block in model(one.model_type, **EXPERTS).distinct_blocks)
    assert not (has_experts and len(one.row_codecs) > 1)
    assert "fp16" not in one.row_codecs or "bf16" in one.row_codecs


@pytest.mark.parametrize("one", FAMILIES.values(), ids=lambda one: one.model_type)
def test_roles_are_what_a_block_asks_for(one: Family) -> None:
    """Every block of a family has an output projection and the matrices of its kind of attention and MLP."""
    config = model(one.model_type, **EXPERTS)
    for index in range(config.num_blocks):
        block, roles = config.block_config(index), one.block_tensors(config, index).keys()
        assert "o.weight" in roles
        assert {"kv_a.weight", "kv_b.weight"} <= roles if block.latent else {"q.weight", "k.weight"} <= roles
        assert (
            {"router.weight", "experts.0.down.weight"} <= roles if block.moe else {"up.weight", "down.weight"} <= roles
        )
        assert ("gate.weight" in roles) == (block.gated_mlp and not block.moe)
    assert {"embedding.weight", "norm.weight"} <= one.end_tensors(config).keys()
    assert family(one.model_type) is one
