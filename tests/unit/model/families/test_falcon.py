"""Falcon's layouts."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from shoal.errors import UnsupportedModel
from shoal.model.families.falcon import gguf_fields
from shoal.model.families.gguf_mapping import GgufFields
from tests.unit.model.families.configurations import GgufMemory, counted, model, taken, tensors

NEW: dict[str, Any] = {"new_decoder_architecture": True, "num_kv_heads": 2}


@pytest.mark.parametrize(
    ("fields", "kv_heads", "norms"),
    [
        ({}, 1, {"input_layernorm"}),
        ({"multi_query": False}, 4, {"input_layernorm"}),
        ({"parallel_attn": False}, 1, {"input_layernorm", "post_attention_layernorm"}),
        (NEW, 2, {"ln_attn", "ln_mlp"}),
        ({**NEW, "num_ln_in_parallel_attn": 1}, 2, {"input_layernorm"}),
    ],
)
def test_layouts(fields: dict[str, Any], kv_heads: int, norms: set[str]) -> None:
    """7B, its relatives, 40B and 11B: key heads, and which norms stand before attention and MLP."""
    config = model("falcon", **fields)
    assert config.block.num_kv_heads == kv_heads
    assert config.block.parallel_residual == ("post_attention_layernorm" not in norms)
    found = tensors(config)
    names = {found[f"{role}.weight"].name.split(".")[-2] for role in ("attention_norm", "mlp_norm")}
    assert names == norms


def test_q_k_and_v_are_fused_group_by_group() -> None:
    """A group's query heads, then its key and its value."""
    found, stored = tensors(model("falcon", **NEW, bias=True)), counted(128, 64)
    groups = stored.view(2, 4, 16, 64)
    assert torch.equal(taken(found["q.weight"], stored), groups[:, :2].flatten(0, 2))
    assert torch.equal(taken(found["k.weight"], stored), groups[:, 2].flatten(0, 1))
    assert torch.equal(taken(found["v.weight"], stored), groups[:, 3].flatten(0, 1))
    assert torch.equal(taken(found["v.bias"], counted(128)), counted(2, 4, 16)[:, 3].flatten())


def test_what_cannot_be_certified_is_refused() -> None:
    """ALiBi, whose positions transformers rounds; the new layout one after the other."""
    with pytest.raises(UnsupportedModel, match="alibi"):
        model("falcon", alibi=True)
    with pytest.raises(UnsupportedModel, match="parallel_attn"):
        model("falcon", **NEW, parallel_attn=False)


def test_tensors_tell_the_layouts_of_gguf_files_apart() -> None:
    """A second norm and a bias are there or not; several key heads that queries share are of the new one with one norm too."""
    shape = {"attention__head_count": 4, "attention__head_count_kv": 2, "feed_forward_length": 96}
    more = {"blk.0.attn_norm_2.weight": counted(64), "blk.0.attn_qkv.bias": counted(64)}
    fields = gguf_fields(GgufFields(GgufMemory("falcon", more, **shape), "falcon"))
    assert (fields["new_decoder_architecture"], fields["bias"], fields["num_kv_heads"]) == (True, True, 2)
    fields = gguf_fields(GgufFields(GgufMemory("falcon", **{**shape, "attention__head_count_kv": 1}), "falcon"))
    assert (fields["new_decoder_architecture"], fields["bias"], fields["multi_query"]) == (False, False, True)
    fields = gguf_fields(GgufFields(GgufMemory("falcon", **shape), "falcon"))
    assert (fields["new_decoder_architecture"], fields["num_ln_in_parallel_attn"]) == (True, 1)
