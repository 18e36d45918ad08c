"""BLOOM: LayerNorms, ALiBi instead of rotation, a plain MLP, q, k and v fused head by head."""

from __future__ import annotations

from typing import Any

from shoal.errors import CheckpointError
from shoal.model.families import standard
from shoal.model.families.family import Family
from shoal.model.families.fields import MAX_BLOCKS, Config, integer, number, refuse, token_ids
from shoal.model.families.gguf_mapping import NEEDED_OF_LAYER_NORMS, GgufFields, GgufMapping, fused_by_kind, gguf_config
from shoal.model.families.layout import TensorMap, TensorSource, grouped
from shoal.model.nn.block import BlockConfig, ModelConfig
from shoal.model.nn.rope import RopeConfig

MAX_TOKENS = 1 << 15
"""Nothing limits positions but precision and what was trained (2,048)."""


def config(hf: Config) -> ModelConfig:
    """From config.json."""
    refuse(hf, "apply_residual_connection_post_layernorm", False)
    refuse(hf, "tie_word_embeddings", True)
    hidden, heads = integer(hf, "hidden_size"), integer(hf, "n_head")
    if hidden % heads:
        raise CheckpointError(f"{hidden} dimensions do not divide over {heads} heads")
    block = BlockConfig(
        hidden_size=hidden,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=hidden // heads,
        intermediate_size=4 * hidden,
        norm_eps=number(hf, "layer_norm_epsilon"),
        rope=RopeConfig(),
        activation="gelu_pytorch_tanh",
        norm="layer",
        rotary_dim=0,
        alibi=True,
        gated_mlp=False,
    )
    return ModelConfig(
        model_type="bloom",
        num_blocks=integer(hf, "n_layer", most=MAX_BLOCKS),
        vocab_size=integer(hf, "vocab_size"),
        max_positions=integer(hf, "seq_length", MAX_TOKENS),
        eos_token_ids=token_ids(hf.get("eos_token_id")),
        tied_head=True,
        block=block,
        embedding_norm=True,
    )


def block_tensors(config: ModelConfig, index: int) -> TensorMap:
    """BLOOM's own names."""
    shape, prefix = config.block, f"transformer.h.{index}."
    hidden, inner, heads = shape.hidden_size, shape.intermediate_size, shape.num_heads
    tensors = standard.norm_tensors(shape, prefix)
    for part, role in enumerate("qkv"):
        take = grouped(heads, part, part + 1, shape.head_dim)
        tensors[f"{role}.weight"] = TensorSource(
            f"{prefix}self_attention.query_key_value.weight", (3 * hidden, hidden), take
        )
        tensors[f"{role}.bias"] = TensorSource(f"{prefix}self_attention.query_key_value.bias", (3 * hidden,), take)
    tensors.update(standard.linear("o", f"{prefix}self_attention.dense", hidden, hidden, True))
    tensors.update(standard.linear("up", f"{prefix}mlp.dense_h_to_4h", inner, hidden, True))
    tensors.update(standard.linear("down", f"{prefix}mlp.dense_4h_to_h", hidden, inner, True))
    return tensors


def end_tensors(config: ModelConfig) -> TensorMap:
    """An embedding with a norm of its own; the head is tied."""
    hidden = config.block.hidden_size
    return {
        "embedding.weight": TensorSource("transformer.word_embeddings.weight", (config.vocab_size, hidden)),
        **standard.norm_tensors(
            config.block, "transformer.", {"embedding_norm": "word_embeddings_layernorm", "norm": "ln_f"}
        ),
    }


def gguf_fields(fields: GgufFields) -> dict[str, Any]:
    """From GGUF's metadata."""
    config = gguf_config(fields)
    return {**config, "n_layer": config["num_hidden_layers"], "n_head": config["num_attention_heads"]}


GGUF = GgufMapping("bloom", gguf_fields, fused_by_kind, needed=NEEDED_OF_LAYER_NORMS)
DEFAULTS = {
    "vocab_size": 250_880,
    "hidden_size": 64,
    "n_layer": 2,
    "n_head": 8,
    "layer_norm_epsilon": 1e-5,
    "eos_token_id": 2,
}
ALIASES = {"num_hidden_layers": "n_layer", "num_attention_heads": "n_head", "n_embed": "hidden_size"}
FAMILY = Family("bloom", "BLOOM", config, block_tensors, end_tensors, gguf=GGUF, defaults=DEFAULTS, aliases=ALIASES)
