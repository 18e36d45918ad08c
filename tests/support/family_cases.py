"""The table of families: tiny random checkpoints of each, for tests and for `python -m bench families`."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Fields = dict[str, Any]


class Case(NamedTuple):
    """A checkpoint to certify a family with: fields of transformers' configuration beside TINY's."""

    model_type: str
    name: str
    fields: Fields
    granted: int = 300
    """Tokens that sessions are opened with, where rope factors follow that."""

    gguf: bool = False
    """Whether a GGUF file can say all of it."""

    seed: int = 0
    """Of its weights."""


TINY: Fields = {
    "vocab_size": 131,
    "hidden_size": 48,
    "intermediate_size": 100,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-3,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
}

SCALE = 0.15
LIVELY: Mapping[str, float] = {
    **dict.fromkeys(("q_proj", "k_proj", "qkv_proj", "query_key_value", "q_norm", "k_norm", "q_b_proj"), 1.7),
    **dict.fromkeys(("model.norm.", "ln_f."), 0.7),
}
"""Factors of weights by a part of their names. Attention chooses among its keys instead of taking their mean, so that a reply
does not end in a circle; logits are as large as before."""

_GEMMA = {"embed_tokens": 0.5, "post_attention": 2.5, "post_feedforward": 2.5, "model.norm.": 1.7}
_DEEPSEEK = {"q_b_proj": 3.0, "o_proj": 1.5, "q_a_proj": 0.2, "kv_a_proj": 0.4}
LIVELY_FAMILIES: Mapping[str, Mapping[str, float]] = {
    "gemma2": _GEMMA,
    "gemma3_text": {**_GEMMA, "q_norm": 0.9, "k_norm": 0.9, "gate_proj": 1.6},
    "deepseek_v2": _DEEPSEEK,
    "deepseek_v3": _DEEPSEEK,
    "gpt_oss": {"gate_up_proj": 4.0, "down_proj": 0.2, "model.norm.": 0.8},
    "qwen3_moe": {"model.norm.": 0.75},
    "bloom": {
        "dense_h_to_4h": 0.3,
        "dense_4h_to_h": 2.0,
        "query_key_value": 1.4,
        "attention.dense": 1.5,
        "word_embeddings_layernorm": 0.2,
        "bias": 0.4,
        "ln_f.": 0.6,
    },
    "falcon": {"dense_h_to_4h": 0.3, "dense_4h_to_h": 3.0, "query_key_value": 1.2},
}
"""More of them, where an embedding outweighs what the blocks add, or an activation's mean does."""

WINDOWED = ["sliding_attention", "full_attention", "sliding_attention"]
LLAMA3: Fields = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
    "rope_theta": 500_000.0,
}
YARN: Fields = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 4096,
    "rope_theta": 10_000.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
}
LONGROPE: Fields = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.5, 1.7],
    "long_factor": [1.0, 1.5, 2.0, 3.0, 5.0, 8.0],
    "rope_theta": 10_000.0,
}
LATENT: Fields = {
    "num_key_value_heads": 4,
    "q_lora_rank": 24,
    "kv_lora_rank": 20,
    "qk_nope_head_dim": 10,
    "qk_rope_head_dim": 6,
    "v_head_dim": 14,
    "head_dim": 6,
    "moe_intermediate_size": 30,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
    "n_group": 4,
    "topk_group": 2,
    "routed_scaling_factor": 1.5,
}
EXPERTS: Fields = {"num_experts_per_tok": 2, "moe_intermediate_size": 40}
BLOOM: Fields = {"head_dim": None, "layer_norm_epsilon": 1e-3}
FALCON: Fields = {
    "head_dim": None,
    "num_key_value_heads": None,
    "multi_query": True,
    "bias": False,
    "alibi": False,
    "layer_norm_epsilon": 1e-3,
}

CASES: tuple[Case, ...] = (
    Case("llama", "", {}, gguf=True),
    Case("llama", "one key head, untied", {"num_key_value_heads": 1, "tie_word_embeddings": False}, gguf=True),
    Case("llama", "all key heads, wide heads", {"num_key_value_heads": 4, "head_dim": 34}, gguf=True),
    Case("llama", "biases", {"attention_bias": True, "mlp_bias": True}, gguf=True),
    Case("llama", "heads by division", {"head_dim": None, "hidden_size": 40}),
    Case(
        "llama",
        "odd widths",
        {
            "hidden_size": 90,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "head_dim": 10,
            "intermediate_size": 33,
        },
    ),
    Case("llama", "linear rope", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10_000.0}}),
    Case("llama", "llama 3 rope", {"rope_parameters": LLAMA3}),
    Case(
        "llama",
        "dynamic rope",
        {
            "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0},
            "max_position_embeddings": 128,
        },
        granted=150,
    ),
    Case("llama", "gelu", {"hidden_act": "gelu_pytorch_tanh"}),
    Case("qwen2", "", {}, gguf=True),
    Case(
        "qwen2",
        "windows in the last block",
        {"use_sliding_window": True, "sliding_window": 40, "max_window_layers": 2, "layer_types": None},
    ),
    Case("qwen3", "", {}, gguf=True),
    Case("qwen3", "yarn", {"rope_parameters": YARN, "tie_word_embeddings": False}),
    Case("gemma3_text", "", {"layer_types": WINDOWED, "sliding_window": 40, "query_pre_attn_scalar": 17}, seed=1),
    Case(
        "gemma3_text",
        "stretched",
        {
            "layer_types": WINDOWED,
            "sliding_window": 70,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
        seed=1,
    ),
    Case(
        "gemma3_text",
        "every sixth block sees all",
        {
            "layer_types": [*["sliding_attention"] * 5, "full_attention"],
            "num_hidden_layers": 6,
            "sliding_window": 40,
            "query_pre_attn_scalar": 12,
        },
        gguf=True,
        seed=1,
    ),
    Case("mistral", "", {"sliding_window": None}, gguf=True),
    Case("mistral", "window", {"sliding_window": 40}),
    Case("mixtral", "", {"num_local_experts": 5, "num_experts_per_tok": 2, "tie_word_embeddings": False}, gguf=True),
    Case(
        "qwen3_moe",
        "",
        {**EXPERTS, "num_experts": 6, "norm_topk_prob": True, "tie_word_embeddings": False},
        gguf=True,
        seed=3,
    ),
    Case(
        "qwen3_moe",
        "a dense block, not normalized",
        {**EXPERTS, "num_experts": 6, "norm_topk_prob": False, "mlp_only_layers": [1]},
    ),
    Case(
        "gpt_oss",
        "",
        {
            "num_local_experts": 6,
            "num_experts_per_tok": 3,
            "layer_types": WINDOWED,
            "sliding_window": 40,
            "rope_parameters": {**YARN, "truncate": False},
            "tie_word_embeddings": False,
        },
        gguf=True,
        seed=1,
    ),
    Case("phi3", "", {"sliding_window": 60, "tie_word_embeddings": False}, gguf=True),
    Case(
        "phi3",
        "short factors",
        {"rope_parameters": {**LONGROPE, "original_max_position_embeddings": 300}, "tie_word_embeddings": False},
    ),
    Case(
        "phi3",
        "long factors, a part of each head",
        {
            "rope_parameters": {**LONGROPE, "original_max_position_embeddings": 64, "partial_rotary_factor": 0.75},
            "hidden_size": 64,
            "head_dim": 16,
            "tie_word_embeddings": False,
        },
    ),
    Case("olmo2", "", {"tie_word_embeddings": False}, gguf=True),
    Case("gemma2", "", {"sliding_window": 40, "query_pre_attn_scalar": 12, "layer_types": WINDOWED}, gguf=True, seed=1),
    Case("gemma2", "other scale", {"sliding_window": 40, "query_pre_attn_scalar": 17, "layer_types": WINDOWED}),
    Case("glm4", "", {"attention_bias": True}, gguf=True, seed=3),
    Case("deepseek_v2", "", {**LATENT, "topk_method": "group_limited_greedy"}, gguf=True),
    Case("deepseek_v2", "Lite", {**LATENT, "topk_method": "greedy", "q_lora_rank": None}, gguf=True),
    Case(
        "deepseek_v2",
        "yarn",
        {
            **LATENT,
            "topk_method": "greedy",
            "rope_parameters": {**YARN, "mscale": 0.707, "mscale_all_dim": 0.707},
        },
        gguf=True,
    ),
    Case("deepseek_v3", "", LATENT, gguf=True),
    Case(
        "deepseek_v3",
        "yarn",
        {**LATENT, "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 0.8}, "n_group": 1, "topk_group": 1},
    ),
    Case("bloom", "", BLOOM, gguf=True),
    Case("bloom", "heads not a power of two", {**BLOOM, "num_attention_heads": 6}, gguf=True),
    Case("falcon", "", FALCON, gguf=True),
    Case(
        "falcon",
        "new layout",
        {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2, "bias": True, "ffn_hidden_size": 100},
        gguf=True,
    ),
    Case(
        "falcon",
        "new layout, one norm, untied",
        {
            **FALCON,
            "new_decoder_architecture": True,
            "num_kv_heads": 2,
            "num_ln_in_parallel_attn": 1,
            "tie_word_embeddings": False,
        },
        gguf=True,
    ),
    Case("falcon", "one after the other", {**FALCON, "parallel_attn": False, "multi_query": False}),
)
"""One row per family (that without a name) and one more for each of its variants."""


def save_checkpoint(case: Case, directory: Path | str) -> Path:
    """Save a random checkpoint (config.json, model.safetensors, fp32) with lively weights and return its directory."""
    factors = LIVELY_FAMILIES.get(case.model_type, {})
    return save_drawn(case, directory, lambda name: _product(LIVELY, name) * _product(factors, name))


def save_drawn(
    case: Case,
    directory: Path | str,
    factor: Callable[[str], float] = lambda name: 1.0,
    dtype: type[np.floating[Any]] = np.float32,
) -> Path:
    """The same with the weights of each name multiplied by a factor, and rounded to numbers that `dtype` has.

    The weights are normal with deviation SCALE, biases and norms included, so that nothing is zero or one by chance of
    initialisation. Each tensor is drawn by its own name: the same numbers with every version of torch and transformers.
    """
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = {**TINY, **case.fields}
    if fields["head_dim"] is None:  # some configurations work it out and let nobody set it
        del fields["head_dim"]
    config = AutoConfig.for_model(case.model_type, **fields)
    AutoModelForCausalLM.from_config(config).to(torch.float32).save_pretrained(str(directory))
    file = Path(directory) / "model.safetensors"
    shapes = {name: tuple(tensor.shape) for name, tensor in load_file(file).items()}
    numbers = {name: _drawn(case, name, shape, factor(name)) for name, shape in shapes.items()}
    rounded = {name: torch.from_numpy(one.astype(dtype).astype(np.float32)) for name, one in numbers.items()}
    save_file(rounded, file, metadata={"format": "pt"})
    return Path(directory)


def _product(factors: Mapping[str, float], name: str) -> float:
    return math.prod(factor for part, factor in factors.items() if part in name)


def _drawn(case: Case, name: str, shape: tuple[int, ...], factor: float) -> NDArray[np.float64]:
    of_norm = len(shape) == 1 and name.endswith("weight")
    seed = zlib.crc32(f"{name}{case.seed}".encode())
    numbers: NDArray[np.float64] = np.random.RandomState(seed).standard_normal(shape)
    wide = {**TINY, **case.fields}["hidden_size"] / TINY["hidden_size"] if len(shape) > 1 else 1.0
    numbers = factor * (SCALE * wide**-0.5 * numbers + of_norm)
    return numbers - 1.0 if of_norm and case.model_type.startswith("gemma") else numbers  # which it adds
