"""BLOOM: LayerNorms, ALiBi, a plain MLP, and q, k, v fused head by head."""

from __future__ import annotations

from typing import Any

import torch

from shoal.model.families import family
from shoal.model.families.bloom import GGUF, gguf_fields
from shoal.model.families.gguf_mapping import GgufFields
from tests.unit.model.families.configurations import GgufMemory, counted, model, taken, tensors

OLD: dict[str, Any] = {"n_layer": 2, "n_head": 4, "n_embed": 64, "num_attention_heads": None, "hidden_size": None}


def test_what_it_does_instead_of_llamas() -> None:
    """From fields that have names of their own, or the usual ones."""
    for config in (model("bloom"), model("bloom", **OLD)):
        block = config.block
        assert (block.norm, block.rotary_dim, block.alibi, block.gated_mlp) == ("layer", 0, True, False)
        assert (block.num_kv_heads, block.head_dim, block.intermediate_size) == (4, 16, 256)
        assert config.tied_head
        assert config.embedding_norm
    assert (model("bloom").num_blocks, model("bloom", **OLD).num_blocks) == (4, 2)


def test_q_k_and_v_are_fused_head_by_head() -> None:
    """Weights and biases; everything has a bias."""
    found, stored = tensors(model("bloom"), 1), counted(192, 64)
    heads = stored.view(4, 3, 16, 64)
    for part, role in enumerate("qkv"):
        assert torch.equal(taken(found[f"{role}.weight"], stored), heads[:, part].flatten(0, 1))
        assert found[f"{role}.bias"].name == "transformer.h.1.self_attention.query_key_value.bias"
    assert {"o.bias", "up.bias", "down.bias", "mlp_norm.bias"} < found.keys()


def test_the_embedding_has_a_norm() -> None:
    """With a bias, as the final one has."""
    ends = family("bloom").end_tensors(model("bloom"))
    assert {"embedding_norm.weight", "embedding_norm.bias", "norm.weight", "norm.bias"} < ends.keys()
    assert "head.weight" not in ends


def test_gguf_keeps_q_k_and_v_one_after_the_other() -> None:
    """They are brought back among their heads."""
    fields = gguf_fields(GgufFields(GgufMemory("bloom", block_count=2, attention__head_count=4), "bloom"))
    assert (fields["n_layer"], fields["n_head"]) == (2, 4)
    stored = counted(4, 3, 16, 8).flatten(0, 2)
    written = stored.view(4, 3, 16, 8).transpose(0, 1).reshape(192, 8)
    restore = GGUF.restore("transformer.h.0.self_attention.query_key_value.weight", {"num_attention_heads": 4})
    assert restore is not None
    assert torch.equal(restore([written]), stored)
