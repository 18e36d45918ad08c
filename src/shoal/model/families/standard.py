"""What most families share: Llama's configuration and tensor names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shoal.errors import CheckpointError
from shoal.model.families.fields import (
    MAX_BLOCKS,
    MAX_POSITIONS,
    Config,
    activation,
    flag,
    integer,
    number,
    rope,
    rotary_dim,
    token_ids,
)
from shoal.model.families.layout import TensorMap, TensorSource
from shoal.model.nn.block import BlockConfig, ModelConfig, StoredTensors

DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "eos_token_id": 2,
}
"""Of transformers' LlamaConfig; the other families say where theirs differ."""

NORMS = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
MATRICES = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}


def block_config(hf: Config, **features: Any) -> BlockConfig:
    """A block's form from the fields that Llama has; `features` say what else the family does."""
    hf = {**DEFAULTS, **hf}
    hidden, heads = integer(hf, "hidden_size"), integer(hf, "num_attention_heads")
    kv_heads = integer(hf, "num_key_value_heads", heads)
    head_dim = integer(hf, "head_dim", max(1, hidden // heads))
    check_heads(heads, kv_heads, head_dim)
    turning = rotary_dim(hf, head_dim)
    fields: dict[str, Any] = {
        "hidden_size": hidden,
        "num_heads": heads,
        "num_kv_heads": kv_heads,
        "head_dim": head_dim,
        "intermediate_size": integer(hf, "intermediate_size"),
        "norm_eps": number(hf, "rms_norm_eps"),
        "rotary_dim": None if turning == head_dim else turning,
    }
    fields = {**fields, **features}
    if "rope" not in fields:
        fields["rope"] = rope(hf, head_dim)
    if "activation" not in fields:
        fields["activation"] = activation(hf)
    return BlockConfig(**fields)


def check_heads(heads: int, kv_heads: int, head_dim: int) -> None:
    """Raise CheckpointError unless query heads divide over key heads, and a head into pairs."""
    if heads % kv_heads or head_dim % 2:
        raise CheckpointError(f"{heads} heads over {kv_heads} key heads of dimension {head_dim} do not divide")


def model_config(hf: Config, block: BlockConfig, **features: Any) -> ModelConfig:
    """A model's shape from the fields that Llama has."""
    hf = {**DEFAULTS, **hf}
    fields: dict[str, Any] = {
        "model_type": str(hf["model_type"]),
        "num_blocks": integer(hf, "num_hidden_layers", most=MAX_BLOCKS),
        "vocab_size": integer(hf, "vocab_size"),
        "max_positions": max_positions(hf, block),
        "eos_token_ids": token_ids(hf.get("eos_token_id")),
        "tied_head": flag(hf, "tie_word_embeddings"),
        "block": block,
    }
    return ModelConfig(**{**fields, **features})


def max_positions(hf: Config, block: BlockConfig) -> int:
    """The longest session; "dynamic" scaling reaches beyond the positions that it was trained on."""
    most = integer(hf, "max_position_embeddings", most=MAX_POSITIONS)
    return min(MAX_POSITIONS, int(most * block.rope.factor)) if block.rope.kind == "dynamic" else most


def differing(kinds: Mapping[str, BlockConfig], types: tuple[str, ...]) -> dict[str, Any]:
    """ModelConfig's `block_kinds` and `layer_types` for blocks of these types."""
    used = tuple(dict.fromkeys(types))
    return {"block_kinds": tuple(kinds[one] for one in used), "layer_types": tuple(map(used.index, types))}


def attention_tensors(shape: BlockConfig, prefix: str, stored: StoredTensors) -> TensorMap:
    """q, k, v, o and the norms of q and k."""
    query, kv, hidden = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim, shape.hidden_size
    tensors: TensorMap = {}
    for role, size in (("q", query), ("k", kv), ("v", kv)):
        tensors.update(linear(role, prefix + MATRICES[role], size, hidden, stored.attention_bias))
    tensors.update(linear("o", prefix + MATRICES["o"], hidden, query, stored.output_bias))
    if shape.qk_norm:
        sizes = (shape.head_dim, shape.head_dim) if shape.qk_norm == "head" else (query, kv)
        for role, name, size in zip(("query_norm", "key_norm"), ("q_norm", "k_norm"), sizes, strict=True):
            tensors[f"{role}.weight"] = TensorSource(f"{prefix}self_attn.{name}.weight", (size,))
    return tensors


def mlp_tensors(shape: BlockConfig, prefix: str, bias: bool, roles: str = "", inner: int = 0) -> TensorMap:
    """Gate, up and down, called `prefix` + gate_proj …; `roles` goes before the roles' names, `inner` is their width."""
    tensors: TensorMap = {}
    hidden, inner = shape.hidden_size, inner or shape.intermediate_size
    for role, out_features, in_features in (("gate", inner, hidden), ("up", inner, hidden), ("down", hidden, inner)):
        tensors.update(linear(f"{roles}{role}", f"{prefix}{role}_proj", out_features, in_features, bias))
    return tensors


def linear(role: str, name: str, out_features: int, in_features: int, bias: bool) -> TensorMap:
    """A matrix and, where there is one, its bias."""
    tensors = {f"{role}.weight": TensorSource(f"{name}.weight", (out_features, in_features))}
    if bias:
        tensors[f"{role}.bias"] = TensorSource(f"{name}.bias", (out_features,))
    return tensors


def norm_tensors(shape: BlockConfig, prefix: str, names: Mapping[str, str] = NORMS) -> TensorMap:
    """Norms by role; of LayerNorms the biases as well."""
    kinds = ("weight", "bias") if shape.norm == "layer" else ("weight",)
    size = (shape.hidden_size,)
    return {
        f"{role}.{kind}": TensorSource(f"{prefix}{name}.{kind}", size) for role, name in names.items() for kind in kinds
    }


def dense_tensors(config: ModelConfig, index: int, norms: Mapping[str, str] = NORMS) -> TensorMap:
    """A block with Llama's names."""
    shape, prefix = config.block_config(index), f"model.layers.{index}."
    return {
        **norm_tensors(shape, prefix, norms),
        **attention_tensors(shape, prefix, config.stored),
        **mlp_tensors(shape, prefix + "mlp.", config.stored.mlp_bias),
    }


def end_tensors(config: ModelConfig) -> TensorMap:
    """The tensors that a client needs: embedding, final norm and, unless tied, the head."""
    hidden, vocab = config.block.hidden_size, config.vocab_size
    tensors: TensorMap = {
        "embedding.weight": TensorSource("model.embed_tokens.weight", (vocab, hidden)),
        "norm.weight": TensorSource("model.norm.weight", (hidden,)),
    }
    if not config.tied_head:
        tensors["head.weight"] = TensorSource("lm_head.weight", (vocab, hidden))
    return tensors
