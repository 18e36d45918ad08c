"""The models whose GGUF files llama.cpp wrote: tiny checkpoints of every family, drawn anew for each comparison.

Their matrices are numbers that fp16 has, so that a file in fp16 holds them as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tests.support.family_cases import (
    BLOOM,
    FALCON,
    LATENT,
    LLAMA3,
    LONGROPE,
    WINDOWED,
    YARN,
    Case,
    Fields,
    save_drawn,
)

FILES = Path(__file__).parent / "files"
TOKENS = 24
"""Of each case's prompt, whose logits llama.cpp computed: longer than any window here."""

SMALL: Fields = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "rms_norm_eps": 0.0078125,
}
"""Beside TINY's fields."""

_FEW: Fields = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_LATENT: Fields = {
    **LATENT,
    "q_lora_rank": 12,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "head_dim": 4,
    "moe_intermediate_size": 16,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "n_group": 2,
    "topk_group": 1,
    "rms_norm_eps": 1e-6,  # which llama.cpp gives the norms inside attention too
}
_SHORT, _LONG = (LONGROPE[key][:4] for key in ("short_factor", "long_factor"))


def _of(model_type: str, name: str = "", **fields: object) -> Case:
    return Case(model_type, name, {**SMALL, **fields})


_FALCON: Fields = {**FALCON, "max_position_embeddings": 2048}  # which the converter writes whatever it is


FOREIGN: tuple[Case, ...] = (
    _of("llama"),
    _of(
        "llama",
        "wide heads",
        num_key_value_heads=4,
        head_dim=10,
        rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 10_000.0},
    ),
    _of("llama", "biases", attention_bias=True, tie_word_embeddings=False),
    _of("llama", "llama 3 rope", rope_parameters={**LLAMA3, "original_max_position_embeddings": 16}),
    _of("qwen2"),
    _of("qwen3", tie_word_embeddings=False),
    _of("qwen3", "yarn", rope_parameters={**YARN, "original_max_position_embeddings": 64}),
    _of(
        "gemma3_text",
        layer_types=[*["sliding_attention"] * 5, "full_attention"],
        num_hidden_layers=6,
        sliding_window=8,
        query_pre_attn_scalar=8,
        intermediate_size=32,
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    ),
    _of("mistral", sliding_window=None),
    _of("mixtral", **_FEW, intermediate_size=16, tie_word_embeddings=False),
    _of("qwen3_moe", **_FEW, norm_topk_prob=True),
    _of(
        "gpt_oss",
        **_FEW,
        intermediate_size=16,
        layer_types=WINDOWED[:2],
        sliding_window=8,
        rope_parameters={**YARN, "truncate": False, "original_max_position_embeddings": 64},
        tie_word_embeddings=False,
    ),
    _of("phi3", sliding_window=8, tie_word_embeddings=False),
    _of(
        "phi3",
        "long factors",
        rope_parameters={
            **LONGROPE,
            "short_factor": _SHORT,
            "long_factor": _LONG,
            "original_max_position_embeddings": 16,
        },
        sliding_window=None,
        tie_word_embeddings=False,
    ),
    _of("olmo2", tie_word_embeddings=False),
    _of("gemma2", layer_types=WINDOWED[:2], sliding_window=8, query_pre_attn_scalar=8),
    _of("glm4", attention_bias=True),
    _of("deepseek_v2", **{**_LATENT, "topk_method": "greedy", "n_group": 1, "scoring_func": "softmax"}),
    _of(
        "deepseek_v2",
        "groups, yarn",
        **{**_LATENT, "topk_method": "group_limited_greedy", "scoring_func": "softmax"},
        rope_parameters={**YARN, "mscale": 0.707, "mscale_all_dim": 0.707},
    ),
    _of("deepseek_v3", **_LATENT, scoring_func="sigmoid"),
    _of(
        "deepseek_v3",
        "yarn",
        **_LATENT,
        scoring_func="sigmoid",
        rope_parameters={**YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
    ),
    _of("bloom", **BLOOM),
    _of("falcon", **{**_FALCON, "num_kv_heads": 1}),
    _of("falcon", "new layout", **{**_FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}),
    _of(
        "falcon",
        "one norm",
        **{**_FALCON, "new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
        tie_word_embeddings=False,
    ),
)
"""One for each family, and one more for each thing that files of it may have in another order."""


def save_original(case: Case, directory: Path | str) -> Path:
    """Save the checkpoint that a file was written of; return its directory."""
    return save_drawn(case, directory, dtype=np.float16)


def path_of(case: Case) -> Path:
    """The file that llama.cpp wrote of a case."""
    return FILES / f"{'-'.join([case.model_type, *case.name.replace(',', '').split()])}.gguf"


QUANTIZED: Mapping[str, Mapping[str, str]] = {
    "k-quants": {
        "token_embd": "Q6_K",
        "attn_q": "Q4_K",
        "attn_k": "Q5_K",
        "attn_v": "Q3_K",
        "attn_output": "Q8_0",
        "ffn_gate": "Q2_K",
        "ffn_up": "Q3_K",
        "ffn_down": "Q4_K",
    },
    "older": {
        "token_embd": "BF16",
        "attn_q": "Q4_0",
        "attn_k": "Q4_1",
        "attn_v": "Q5_0",
        "attn_output": "Q5_1",
        "ffn_gate": "Q4_0",
        "ffn_up": "Q5_1",
        "ffn_down": "Q8_0",
    },
    "tables": {
        "token_embd": "IQ4_XS",
        "attn_q": "IQ4_NL",
        "attn_k": "IQ4_XS",
        "attn_v": "IQ3_S",
        "attn_output": "MXFP4",
        "ffn_gate": "IQ3_S",
        "ffn_up": "IQ4_NL",
        "ffn_down": "IQ4_XS",
    },
}
"""The files that llama.cpp's quantizer wrote of one model, and the type of each of its matrices."""

WIDE: Case = _of(
    "llama",
    "wide",
    hidden_size=256,
    intermediate_size=256,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=32,
)
"""That model: K-quants come in blocks of 256 numbers."""
