"""Llama: 1, 2, 3, 3.1, 3.2, 3.3 and everything that says `model_type: llama` (SmolLM, TinyLlama, Yi, …)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from shoal.errors import CheckpointError, UnsupportedModel
from shoal.nn.block import BlockConfig, ModelConfig
from shoal.nn.layers import ACTIVATIONS
from shoal.nn.rope import RopeConfig

MAX_SIZE = 1 << 20
MAX_POSITIONS = 1 << 24  # beyond that a position is no longer exact in fp32
ROPE_KINDS = ("default", "linear", "llama3")

Shapes = dict[str, tuple[str, tuple[int, ...]]]


def integer(config: Mapping[str, Any], key: str, default: int | None = None, most: int = MAX_SIZE) -> int:
    """A positive integer of a configuration; raises CheckpointError when it is missing or cannot be."""
    value = config.get(key)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= most:
        raise CheckpointError(f"the configuration's {key} is {value!r}, not an integer from 1 to {most}")
    return value


def number(config: Mapping[str, Any], key: str, default: float) -> float:
    """A positive finite number of a configuration; raises CheckpointError when it cannot be."""
    value = config.get(key)
    value = default if value is None else value
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1e12:
        raise CheckpointError(f"the configuration's {key} is {value!r}, not a positive number")
    return float(value)


def token_ids(value: object) -> tuple[int, ...]:
    """An id or a list of ids, as configurations have them."""
    ids = value if isinstance(value, list) else [value]
    return tuple(one for one in ids if isinstance(one, int) and not isinstance(one, bool) and one >= 0)


def rope(config: Mapping[str, Any], head_dim: int) -> RopeConfig:
    """The rotary embedding, from `rope_parameters` (newer files) or `rope_theta` and `rope_scaling`.

    Raises UnsupportedModel for a kind that is not known, CheckpointError for numbers that cannot be.
    """
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(given, Mapping):
        raise CheckpointError(f"the configuration's rope_scaling is {given!r}, not a mapping")
    kind = given.get("rope_type") or given.get("type") or "default"
    if kind not in ROPE_KINDS:
        raise UnsupportedModel(f"rope scaling {kind!r} is not supported (these are: {', '.join(ROPE_KINDS)})")
    if given.get("partial_rotary_factor", 1.0) != 1.0 or config.get("partial_rotary_factor", 1.0) != 1.0:
        raise UnsupportedModel("a rotary embedding of a part of the head (partial_rotary_factor) is not supported")
    low, high = number(given, "low_freq_factor", 1.0), number(given, "high_freq_factor", 4.0)
    if not low < high:
        raise CheckpointError(f"the configuration's low_freq_factor {low} is not below its high_freq_factor {high}")
    return RopeConfig(
        theta=number(given, "rope_theta", number(config, "rope_theta", 10_000.0)),
        kind=kind,
        factor=number(given, "factor", 1.0),
        low_freq_factor=low,
        high_freq_factor=high,
        original_max_positions=integer(given, "original_max_position_embeddings", 8192, MAX_POSITIONS),
        factors=_factors(given.get("factors"), head_dim // 2),
    )


def _factors(value: object, pairs: int) -> tuple[float, ...]:
    if not value:
        return ()
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != pairs:
        raise CheckpointError(f"the configuration's rope factors are not {pairs} numbers")
    return tuple(number({"rope factor": factor}, "rope factor", 1.0) for factor in value)


def config(hf: Mapping[str, Any]) -> ModelConfig:
    """A Llama's shape from its config.json."""
    hidden, heads = integer(hf, "hidden_size"), integer(hf, "num_attention_heads")
    kv_heads = integer(hf, "num_key_value_heads", heads)
    head_dim = integer(hf, "head_dim", max(1, hidden // heads))
    if heads % kv_heads or head_dim % 2:
        raise CheckpointError(f"{heads} heads over {kv_heads} key heads of dimension {head_dim} do not divide")
    activation = hf.get("hidden_act") or "silu"
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise UnsupportedModel(f"activation {activation!r} is not supported (these are: {', '.join(ACTIVATIONS)})")
    bias = bool(hf.get("attention_bias", False))
    block = BlockConfig(
        hidden_size=hidden,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=integer(hf, "intermediate_size"),
        norm_eps=number(hf, "rms_norm_eps", 1e-6),
        rope=rope(hf, head_dim),
        activation=activation,
        attention_bias=bias,
        output_bias=bias,
        mlp_bias=bool(hf.get("mlp_bias", False)),
    )
    return ModelConfig(
        model_type="llama",
        num_blocks=integer(hf, "num_hidden_layers"),
        vocab_size=integer(hf, "vocab_size"),
        max_positions=integer(hf, "max_position_embeddings", 2048, MAX_POSITIONS),
        eos_token_ids=token_ids(hf.get("eos_token_id")),
        tied_head=bool(hf.get("tie_word_embeddings", False)),
        block=block,
    )


def block_tensors(config: ModelConfig, index: int) -> Shapes:
    """The tensors of one block."""
    shape, prefix = config.block, f"model.layers.{index}."
    hidden, inner = shape.hidden_size, shape.intermediate_size
    query, kv = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    matrices = {
        "q": ("self_attn.q_proj", query, hidden, shape.attention_bias),
        "k": ("self_attn.k_proj", kv, hidden, shape.attention_bias),
        "v": ("self_attn.v_proj", kv, hidden, shape.attention_bias),
        "o": ("self_attn.o_proj", hidden, query, shape.output_bias),
        "gate": ("mlp.gate_proj", inner, hidden, shape.mlp_bias),
        "up": ("mlp.up_proj", inner, hidden, shape.mlp_bias),
        "down": ("mlp.down_proj", hidden, inner, shape.mlp_bias),
    }
    tensors: Shapes = {
        "attention_norm.weight": (prefix + "input_layernorm.weight", (hidden,)),
        "mlp_norm.weight": (prefix + "post_attention_layernorm.weight", (hidden,)),
    }
    for role, (name, out_features, in_features, has_bias) in matrices.items():
        tensors[f"{role}.weight"] = (f"{prefix}{name}.weight", (out_features, in_features))
        if has_bias:
            tensors[f"{role}.bias"] = (f"{prefix}{name}.bias", (out_features,))
    return tensors


def end_tensors(config: ModelConfig) -> Shapes:
    """The tensors that a client needs: embedding, final norm and, unless tied, the head."""
    hidden, vocab = config.block.hidden_size, config.vocab_size
    tensors: Shapes = {
        "embedding.weight": ("model.embed_tokens.weight", (vocab, hidden)),
        "norm.weight": ("model.norm.weight", (hidden,)),
    }
    if not config.tied_head:
        tensors["head.weight"] = ("lm_head.weight", (vocab, hidden))
    return tensors
