"""The table of families: tiny random checkpoints of each, for tests and for `python -m bench families`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

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


TINY: Fields = {
    "vocab_size": 131,
    "hidden_size": 48,
    "intermediate_size": 100,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
}

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
    "original_max_position_embeddings": 128,
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
BLOOM: Fields = {"head_dim": None}
FALCON: Fields = {"head_dim": None, "num_key_value_heads": None, "multi_query": True, "bias": False, "alibi": False}

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
    Case("gemma3_text", "", {"layer_types": WINDOWED, "sliding_window": 40, "query_pre_attn_scalar": 17}),
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
    ),
    Case("mistral", "", {"sliding_window": None}, gguf=True),
    Case("mistral", "window", {"sliding_window": 40}),
    Case("mixtral", "", {"num_local_experts": 5, "num_experts_per_tok": 2, "tie_word_embeddings": False}, gguf=True),
    Case("qwen3_moe", "", {**EXPERTS, "num_experts": 6, "norm_topk_prob": True}, gguf=True),
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
    Case("gemma2", "", {"sliding_window": 40, "query_pre_attn_scalar": 12, "layer_types": WINDOWED}, gguf=True),
    Case("gemma2", "other scale", {"sliding_window": 40, "query_pre_attn_scalar": 17, "layer_types": WINDOWED}),
    Case("glm4", "", {"attention_bias": True}, gguf=True),
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
    ),
    Case("falcon", "one after the other", {**FALCON, "parallel_attn": False, "multi_query": False}),
)
"""One row per family (that without a name) and one more for each of its variants."""


def save_checkpoint(case: Case, directory: Path | str, *, seed: int = 0, scale: float = 0.15) -> Path:
    """Save a random checkpoint (config.json, model.safetensors, fp32) and return its directory.

    The weights are normal with deviation `scale`, biases and norms included, so that nothing is zero or one by chance of
    initialisation.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = {**TINY, **case.fields}
    if fields["head_dim"] is None:  # some configurations work it out and let nobody set it
        del fields["head_dim"]
    config = AutoConfig.for_model(case.model_type, **fields)
    model = AutoModelForCausalLM.from_config(config).to(torch.float32)
    generator = torch.Generator().manual_seed(seed)
    centre = 0.0 if case.model_type.startswith("gemma") else 1.0
    with torch.no_grad():
        for name, weight in model.named_parameters():
            of_norm = weight.ndim == 1 and name.endswith("weight")
            weight.normal_(centre if of_norm else 0.0, scale, generator=generator)
        for name, buffer in model.named_buffers():
            if name.endswith("correction_bias"):
                buffer.normal_(0.0, scale, generator=generator)
    model.save_pretrained(str(directory))
    return Path(directory)
