"""Gemma 2: norms, caps, scales and windows."""

from __future__ import annotations

import pytest
import torch

from shoal.errors import UnsupportedModel
from shoal.model.families import family
from shoal.model.families.gemma2 import gguf_fields
from shoal.model.families.gguf_mapping import GgufFields
from tests.unit.model.families.configurations import GgufMemory, model, taken, tensors

CAPS = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "query_pre_attn_scalar": 16}


def test_what_it_does_beside_llama() -> None:
    """GELU, norms on both sides, capped scores and logits, scaled queries and embeddings, a tied head."""
    config = model("gemma2", **CAPS, head_dim=32)
    block = config.block
    assert (block.activation, block.pre_norms, block.post_norms) == ("gelu_pytorch_tanh", True, True)
    assert (block.attn_softcap, block.query_scale) == (50.0, 0.25)
    assert (config.embedding_scale, config.final_softcap, config.tied_head) == (8.0, 30.0, True)
    assert model("gemma2", final_logit_softcapping=None).final_softcap == 0.0
    assert model("gemma2").final_softcap == 30.0


def test_every_other_block_has_a_window() -> None:
    """The first among them, unless the types say otherwise."""
    config = model("gemma2", sliding_window=40)
    assert [config.block_config(index).window for index in range(4)] == [40, 0, 40, 0]
    config = model("gemma2", sliding_window=40, layer_types=["full_attention"] * 4)
    assert [one.window for one in config.distinct_blocks] == [0]


def test_norms_are_stored_less_one() -> None:
    """All of a block's and the final one, whatever the dtype; nothing else."""
    config = model("gemma2")
    ends = family("gemma2").end_tensors(config)
    for role, source in {**tensors(config), **ends}.items():
        assert (source.take is not None) == ("norm" in role)
    half = torch.full((64,), 0.0078125, dtype=torch.bfloat16)  # 1 + this is not in bfloat16
    assert torch.equal(taken(ends["norm.weight"], half), torch.full((64,), 1.0078125))


def test_the_largest_model_scales_its_queries_by_division() -> None:
    """GGUF does not say: 46 blocks are the 27B model."""
    for blocks, expected in ((26, 32), (46, 16)):
        fields = {"block_count": blocks, "attention__head_count": 4, "attention__key_length": 32}
        file = GgufMemory("gemma2", **fields)
        assert gguf_fields(GgufFields(file, "gemma2"), 46)["query_pre_attn_scalar"] == expected


def test_attention_in_both_directions_is_refused() -> None:
    """EmbeddingGemma's."""
    with pytest.raises(UnsupportedModel, match="bidirectional"):
        model("gemma2", use_bidirectional_attention=True)
