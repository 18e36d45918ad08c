"""GGUF's metadata and tensors as HF's."""

from __future__ import annotations

import pytest
import torch

from shoal.errors import CheckpointError, UnsupportedModel
from shoal.model.families import gguf_architectures, gguf_family
from shoal.model.families.gguf_mapping import (
    GgufFields,
    GgufMapping,
    fused_by_kind,
    gguf_config,
    gguf_name,
    paired_heads,
    partly_turning,
    shifted_norms,
)
from tests.unit.model.families.configurations import GgufMemory, counted


def fields(tensors: dict[str, torch.Tensor] | None = None, **values: object) -> GgufFields:
    """Of a file of Llama's architecture."""
    return GgufFields(GgufMemory("llama", tensors, **values), "llama")


def test_names_are_the_packages() -> None:
    """For any block, with or without the model's prefix; None for what GGUF does not have."""
    assert gguf_name("llama", "model.layers.37.self_attn.q_proj.weight") == "blk.37.attn_q.weight"
    assert gguf_name("llama", "model.embed_tokens.weight") == "token_embd.weight"
    assert gguf_name("bloom", "transformer.h.2.ln_attn.bias") is None
    assert gguf_name("bloom", "transformer.h.2.mlp.dense_h_to_4h.bias") == "blk.2.ffn_up.bias"


def test_what_the_tensors_say() -> None:
    """Sizes from the embedding, a tied head and biases from what is there."""
    config = gguf_config(fields(attention__head_count=4))
    assert (config["vocab_size"], config["hidden_size"], config["tie_word_embeddings"]) == (50, 64, True)
    assert (config["num_key_value_heads"], config["attention_bias"]) == (4, False)
    more = {"output.weight": counted(50, 64), "blk.0.attn_q.bias": counted(64)}
    config = gguf_config(fields(more))
    assert (config["tie_word_embeddings"], config["attention_bias"]) == (False, True)
    with pytest.raises(CheckpointError, match=r"memory.gguf has no token embedding"):
        gguf_config(fields({"token_embd.weight": counted(50)}))


def test_ropes() -> None:
    """Factors that the file has as tensors, a scaling by name, or none."""
    assert gguf_config(fields())["rope_parameters"] == {"rope_type": "default", "rope_theta": 10_000.0}
    found = gguf_config(fields({"rope_freqs.weight": counted(3)}))["rope_parameters"]
    assert found["factors"] == [0.0, 1.0, 2.0]
    long = {"rope_factors_long.weight": counted(2), "rope_factors_short.weight": counted(2) + 1}
    found = gguf_config(fields(long, rope__scaling__attn_factor=1.5))["rope_parameters"]
    assert (found["rope_type"], found["short_factor"], found["long_factor"]) == ("longrope", [1.0, 2.0], [0.0, 1.0])
    assert found["attention_factor"] == 1.5
    yarn = {"rope__scaling__type": "yarn", "rope__scaling__factor": 4.0, "rope__scaling__original_context_length": 9}
    found = gguf_config(fields(None, **yarn))["rope_parameters"]
    assert (found["rope_type"], found["factor"], found["original_max_position_embeddings"]) == ("yarn", 4.0, 9)


def test_a_part_of_each_head_turns() -> None:
    """As a share of the head's width, which may have to be worked out; nonsense is left to the configuration's checks."""
    assert partly_turning(fields(attention__head_count=4, rope__dimension_count=8))["partial_rotary_factor"] == 0.5
    config = partly_turning(fields(attention__head_count="4", rope__dimension_count=8))
    assert "partial_rotary_factor" not in config


def test_heads_in_pairs_become_halves() -> None:
    """Of q by the query heads and of k by the key heads; v is left alone."""
    config = {"num_attention_heads": 4, "num_key_value_heads": 2}
    for role, heads in (("q", 4), ("k", 2)):
        restore = paired_heads(f"model.layers.0.self_attn.{role}_proj.weight", config)
        assert restore is not None
        halves = counted(heads, 2, 3, 5)
        assert torch.equal(restore([halves.transpose(1, 2).reshape(-1, 5)]), halves.reshape(-1, 5))
    assert paired_heads("model.layers.0.self_attn.v_proj.weight", config) is None


def test_groups_of_fused_heads() -> None:
    """All q, then all k, then all v become one group after the other."""
    restore = fused_by_kind("query_key_value.weight", {"num_attention_heads": 4, "num_kv_heads": 2})
    assert restore is not None
    groups = counted(2, 4, 3, 5)
    parts = (groups[:, :2], groups[:, 2:3], groups[:, 3:])
    assert torch.equal(restore([torch.cat([part.reshape(-1, 5) for part in parts])]), groups.reshape(-1, 5))
    assert fused_by_kind("dense.weight", {}) is None


def test_norms_one_less() -> None:
    """And only norms."""
    restore = shifted_norms("model.layers.0.self_attn.q_norm.weight", {})
    assert restore is not None
    assert torch.equal(restore([counted(3)]), counted(3) - 1)
    assert shifted_norms("model.layers.0.mlp.up_proj.weight", {}) is None


def test_experts_are_found_in_their_stack() -> None:
    """One of a stack that is large enough; a stack of matrices it must be."""
    mapping, name = GgufMapping("qwen3moe"), "model.layers.0.mlp.experts.2.up_proj.weight"
    file = GgufMemory("qwen3moe", {"blk.0.ffn_up_exps.weight": counted(3, 4, 5)})
    assert mapping.find(file, {}, name) == (("blk.0.ffn_up_exps.weight",), 2, None)
    assert mapping.find(GgufMemory("qwen3moe"), {}, name) is None
    for shape in ((2, 4, 5), (3, 20)):
        file = GgufMemory("qwen3moe", {"blk.0.ffn_up_exps.weight": counted(*shape)})
        with pytest.raises(CheckpointError, match="has no expert 2"):
            mapping.find(file, {}, name)


@pytest.mark.parametrize("architecture", ["mamba", None, ["llama"], 3])
def test_other_architectures_are_told_what_is_read(architecture: object) -> None:
    """By GGUF's names."""
    file = GgufMemory("x")
    file.metadata["general.architecture"] = architecture
    with pytest.raises(UnsupportedModel, match=r"memory\.gguf") as caught:
        gguf_family(file)
    assert all(name in str(caught.value) for name in gguf_architectures())
