"""Configurations: what is read from them, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from shoal.errors import CheckpointError, UnsupportedModel
from shoal.model.families import FAMILIES, TensorSource, family, model_config
from shoal.model.nn.rope import RopeConfig

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 100,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 50,
}
EXPERTS = {"n_routed_experts": 8, "moe_intermediate_size": 8, "num_experts_per_tok": 2}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def test_a_bare_configuration_gets_the_families_defaults() -> None:
    """What old files leave out: key heads, head_dim, rope, tied head, end token."""
    config = model_config(LLAMA)
    assert (config.num_blocks, config.vocab_size, config.tied_head) == (2, 50, False)
    assert (config.block.num_kv_heads, config.block.head_dim) == (4, 16)
    assert config.block.rope == RopeConfig(theta=10_000.0)
    assert config.eos_token_ids == (2,)
    assert model_config({**LLAMA, "eos_token_id": None}).eos_token_ids == ()


@pytest.mark.parametrize(
    "fields",
    [
        {"rope_theta": 500_000.0, "rope_scaling": {**LLAMA3, "original_max_position_embeddings": 4096}},
        {"rope_parameters": {**LLAMA3, "rope_theta": 500_000.0, "original_max_position_embeddings": 4096}},
        {
            "rope_theta": 500_000.0,
            "rope_scaling": {"type": "llama3", **LLAMA3, "original_max_position_embeddings": 4096},
        },
    ],
)
def test_rope_is_read_from_old_and_new_layouts(fields: dict[str, Any]) -> None:
    """The same rope in `rope_scaling` beside `rope_theta` and in `rope_parameters`."""
    expected = RopeConfig(500_000.0, "llama3", 8.0, 1.0, 4.0, 4096)
    assert model_config({**LLAMA, **fields}).block.rope == expected


def test_ends_of_sequence() -> None:
    """One id or several."""
    assert model_config({**LLAMA, "eos_token_id": 2}).eos_token_ids == (2,)
    assert model_config({**LLAMA, "eos_token_id": [2, 7]}).eos_token_ids == (2, 7)


def test_tensors_by_role() -> None:
    """Names and shapes of a block and of the ends; biases only where the configuration has them."""
    config = model_config({**LLAMA, "num_key_value_heads": 2, "tie_word_embeddings": True})
    tensors = family("llama").block_tensors(config, 1)
    assert tensors["k.weight"] == TensorSource("model.layers.1.self_attn.k_proj.weight", (32, 64))
    assert tensors["down.weight"] == TensorSource("model.layers.1.mlp.down_proj.weight", (64, 100))
    assert len(tensors) == 9
    assert set(family("llama").end_tensors(config)) == {"embedding.weight", "norm.weight"}
    biased = model_config({**LLAMA, "attention_bias": True, "mlp_bias": True})
    assert len(family("llama").block_tensors(biased, 0)) == 16
    assert family("llama").end_tensors(biased)["head.weight"] == TensorSource("lm_head.weight", (50, 64))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": 0}, "hidden_size is 0"),
        ({"hidden_size": -64}, "hidden_size is -64"),
        ({"hidden_size": 1 << 40}, "hidden_size"),
        ({"hidden_size": "64"}, "hidden_size is '64'"),
        ({"hidden_size": 64.0}, "hidden_size"),
        ({"hidden_size": None}, "hidden_size is None"),
        ({"vocab_size": True}, "vocab_size is True"),
        ({"num_hidden_layers": []}, "num_hidden_layers"),
        ({"num_key_value_heads": 3}, "do not divide"),
        ({"head_dim": 15}, "do not divide"),
        ({"rms_norm_eps": 0}, "rms_norm_eps"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"rope_theta": -1.0}, "rope_theta"),
        ({"rope_scaling": "linear"}, "rope_scaling"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "factor"),
        ({"rope_scaling": {**LLAMA3, "low_freq_factor": 4.0}}, "low_freq_factor"),
        ({"rope_scaling": {"factors": [1.0]}}, "not 8 numbers"),
        ({"rope_scaling": {"factors": "12345678"}}, "not 8 numbers"),
        ({"rope_scaling": {"factors": [1.0] * 7 + [0.0]}}, "rope factor"),
        ({"rope_scaling": {"type": "longrope", "short_factor": [1.0] * 8}}, "long_factor"),
        ({"rope_scaling": {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [1.0] * 7}}, "not 8 numbers"),
        ({"rope_theta": 1.0, "rope_scaling": {"type": "yarn", "factor": 4.0}}, "above 1"),
        ({"head_dim": 2, "rope_scaling": {"type": "dynamic", "factor": 4.0}}, "more than one pair"),
        ({"partial_rotary_factor": 1.5}, "partial_rotary_factor"),
        ({"partial_rotary_factor": 0.2}, "partial_rotary_factor of 0.2 makes 3"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes'"),
        ({"num_hidden_layers": 1 << 20}, "num_hidden_layers"),
        ({"model_type": "gemma2", "layer_types": ["full_attention"]}, "not one for each of 2 blocks"),
        ({"model_type": "gemma3_text", "rope_parameters": [1]}, "rope_parameters"),
        ({"model_type": "gemma3_text", "rope_parameters": {"rope_theta": 1e4}}, "not one for each of"),
        ({"model_type": "mixtral", "num_local_experts": 1 << 30}, "num_local_experts"),
        ({"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 5}, "num_experts_per_tok"),
        ({"model_type": "qwen3_moe", "moe_intermediate_size": 8, "mlp_only_layers": "1"}, "mlp_only_layers"),
        ({"model_type": "deepseek_v3", **EXPERTS, "n_group": 3}, "cannot be chosen"),
        ({"model_type": "deepseek_v3", **EXPERTS, "n_group": 8, "topk_group": 2}, "a group needs two"),
        ({"model_type": "deepseek_v2", **EXPERTS, "qk_rope_head_dim": 7}, "do not turn in pairs"),
        ({"model_type": "bloom", "n_layer": 2, "n_head": 3}, "do not divide"),
        ({"model_type": "falcon", "num_attention_heads": 3}, "do not divide"),
    ],
)
def test_numbers_that_cannot_be(fields: dict[str, Any], message: str) -> None:
    """A lying configuration is refused by name, before anything is allocated."""
    with pytest.raises(CheckpointError, match=message):
        model_config({**LLAMA, **fields})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "mamba"}, "'mamba' are not supported .these are: llama, "),
        ({"model_type": None}, "of type None are not supported .these are: llama, "),
        ({"model_type": ["llama"]}, "not supported"),
        ({"hidden_act": "relu"}, "'relu'"),
        ({"hidden_act": ["silu"]}, "silu"),
        ({"rope_scaling": {"rope_type": "mrope", "factor": 2.0}}, "'mrope'"),
        ({"rope_scaling": {"rope_type": ["yarn"]}}, "yarn"),
        ({"model_type": "falcon", "alibi": True}, "alibi = True"),
        ({"model_type": "gpt_oss", "layer_types": ["linear_attention"] * 2}, "'linear_attention'"),
        ({"model_type": "bloom", "apply_residual_connection_post_layernorm": True}, "post_layernorm"),
        ({"model_type": "deepseek_v2", "topk_method": "noaux_tc"}, "noaux_tc"),
        ({"model_type": "deepseek_v3", **EXPERTS, "rope_interleave": False}, "rope_interleave"),
    ],
)
def test_what_this_version_lacks(fields: dict[str, Any], message: str) -> None:
    """Families and options that are not there are named, with those that are."""
    with pytest.raises(UnsupportedModel, match=message):
        model_config({**LLAMA, **fields})


def test_an_unknown_type_is_told_of_every_family() -> None:
    """All types that there are, by the names that configurations have; what else such a model needs is not guessed."""
    with pytest.raises(UnsupportedModel) as caught:
        model_config({"model_type": "rwkv"})
    assert all(name in str(caught.value) for name in FAMILIES)
    for fields in ({"num_experts": 4}, {"state_size": 16}, {"vision_config": {}, "is_encoder_decoder": True}):
        with pytest.raises(UnsupportedModel) as again:
            model_config({"model_type": "rwkv", **fields})
        assert str(again.value) == str(caught.value)


def test_blocks_may_differ() -> None:
    """Windows and ropes by block; what all share stays one configuration."""
    fields = {**LLAMA, "model_type": "gemma3_text", "num_hidden_layers": 12, "head_dim": 16, "sliding_window": 40}
    config = model_config(fields)
    windows = [config.block_config(index).window for index in range(12)]
    assert windows == [40, 40, 40, 40, 40, 0] * 2
    assert {config.block_config(index).rope.theta for index in (0, 5)} == {1e4, 1e6}
    assert len(config.block_kinds) == 2
    assert model_config(LLAMA).block_config(1) is model_config(LLAMA).block or not model_config(LLAMA).layer_types
