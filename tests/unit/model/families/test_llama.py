"""Llama: the configuration that all others are told apart from."""

from __future__ import annotations

from shoal.model.families.gguf_mapping import GgufFields
from shoal.model.families.llama import FAMILY, GGUF, gguf_fields
from shoal.model.nn.block import BlockConfig, StoredTensors
from tests.unit.model.families.configurations import GgufMemory, model, tensors


def test_a_block_is_the_default() -> None:
    """Nothing but widths, ε and the rope."""
    block = model("llama").block
    assert block == BlockConfig(64, 4, 2, 16, 96, 1e-6, block.rope)


def test_biases_are_where_the_configuration_has_them() -> None:
    """Those of attention and of the MLP apart; the block's form is the same."""
    config = model("llama", mlp_bias=True)
    assert config.stored == StoredTensors(mlp_bias=True)
    assert {role for role in tensors(config) if role.endswith("bias")} == {"gate.bias", "up.bias", "down.bias"}
    config = model("llama", attention_bias=True)
    assert {role for role in tensors(config) if role.endswith("bias")} == {"q.bias", "k.bias", "v.bias", "o.bias"}
    assert config.block == model("llama").block


def test_an_old_file_states_the_width_of_a_head_as_what_turns() -> None:
    """GGUF files without attention.key_length."""
    old = GgufFields(GgufMemory("llama", rope__dimension_count=16), "llama")
    new = GgufFields(GgufMemory("llama", rope__dimension_count=8, attention__key_length=16), "llama")
    assert gguf_fields(old)["head_dim"] == gguf_fields(new)["head_dim"] == 16


def test_files_with_experts_are_mixtrals() -> None:
    """Both call themselves "llama"."""
    assert FAMILY.gguf is GGUF
    assert GGUF.claims(GgufFields(GgufMemory("llama", expert_count=0), "llama"))
    assert not GGUF.claims(GgufFields(GgufMemory("llama", expert_count=8), "llama"))
