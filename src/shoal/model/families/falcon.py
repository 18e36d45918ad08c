"""Falcon: LayerNorms, attention and MLP side by side, q, k and v fused in the order of the architecture's version."""

from __future__ import annotations

from typing import Any

from shoal.errors import CheckpointError
from shoal.model.families import standard
from shoal.model.families.family import Family
from shoal.model.families.fields import Config, activation, flag, integer, number, refuse, rope
from shoal.model.families.gguf_mapping import NEEDED_OF_LAYER_NORMS, GgufFields, GgufMapping, fused_by_kind, gguf_config
from shoal.model.families.layout import TensorMap, TensorSource, grouped
from shoal.model.nn.block import BlockConfig, ModelConfig, StoredTensors


def config(hf: Config) -> ModelConfig:
    """From config.json, of the old layout (7B), the new one (40B, 180B) and that of Falcon 2 (11B)."""
    refuse(hf, "alibi", False)  # transformers rounds its positions to bf16: there is nothing to be equal to
    hidden, heads = integer(hf, "hidden_size"), integer(hf, "num_attention_heads")
    new, bias, parallel = flag(hf, "new_decoder_architecture"), flag(hf, "bias"), flag(hf, "parallel_attn")
    if new:
        refuse(hf, "parallel_attn", True)
    kv_heads = integer(hf, "num_kv_heads", heads)
    if not new:
        kv_heads = 1 if flag(hf, "multi_query") else heads
    if hidden % heads:
        raise CheckpointError(f"{hidden} dimensions do not divide over {heads} heads")
    standard.check_heads(heads, kv_heads, hidden // heads)
    block = BlockConfig(
        hidden_size=hidden,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=hidden // heads,
        intermediate_size=integer(hf, "ffn_hidden_size", 4 * hidden),
        norm_eps=number(hf, "layer_norm_epsilon"),
        rope=rope(hf, hidden // heads),
        activation=activation(hf, "activation"),
        norm="layer",
        parallel_residual=parallel,
        gated_mlp=False,
    )
    one_norm = parallel and not (new and integer(hf, "num_ln_in_parallel_attn", 2) == 2)
    stored = StoredTensors(attention_bias=bias, output_bias=bias, mlp_bias=bias, shared_norm=one_norm)
    return standard.model_config(hf, block, stored=stored)


def block_tensors(config: ModelConfig, index: int) -> TensorMap:
    """Falcon's own names."""
    shape, stored, prefix = config.block, config.stored, f"transformer.h.{index}."
    hidden, inner, group = shape.hidden_size, shape.intermediate_size, shape.num_heads // shape.num_kv_heads
    size = (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim
    tensors = standard.norm_tensors(shape, prefix, _norms(config))
    for role, start, stop in (("q", 0, group), ("k", group, group + 1), ("v", group + 1, group + 2)):
        take = grouped(shape.num_kv_heads, start, stop, shape.head_dim)
        fused = standard.linear(role, f"{prefix}self_attention.query_key_value", size, hidden, stored.attention_bias)
        tensors.update({key: each._replace(take=take) for key, each in fused.items()})
    tensors.update(standard.linear("o", f"{prefix}self_attention.dense", hidden, hidden, stored.output_bias))
    tensors.update(standard.linear("up", f"{prefix}mlp.dense_h_to_4h", inner, hidden, stored.mlp_bias))
    tensors.update(standard.linear("down", f"{prefix}mlp.dense_4h_to_h", hidden, inner, stored.mlp_bias))
    return tensors


def _norms(config: ModelConfig) -> dict[str, str]:
    """One norm for both, one for each side by side, or one after the other."""
    if config.stored.shared_norm:
        return {"attention_norm": "input_layernorm", "mlp_norm": "input_layernorm"}
    return {"attention_norm": "ln_attn", "mlp_norm": "ln_mlp"} if config.block.parallel_residual else standard.NORMS


def end_tensors(config: ModelConfig) -> TensorMap:
    """Embedding, final norm and, unless tied, the head."""
    hidden = config.block.hidden_size
    tensors = {
        "embedding.weight": TensorSource("transformer.word_embeddings.weight", (config.vocab_size, hidden)),
        **standard.norm_tensors(config.block, "transformer.", {"norm": "ln_f"}),
    }
    if not config.tied_head:
        tensors["head.weight"] = TensorSource("lm_head.weight", (config.vocab_size, hidden))
    return tensors


def gguf_fields(fields: GgufFields) -> dict[str, Any]:
    """From GGUF's metadata; which tensors there are tells the layouts apart, and several key heads that queries share."""
    config = gguf_config(fields)
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    two_norms = "blk.0.attn_norm_2.weight" in fields.file
    shared = isinstance(heads, int) and isinstance(kv_heads, int) and 1 < kv_heads < heads
    return {
        **config,
        "new_decoder_architecture": two_norms or shared,
        "num_ln_in_parallel_attn": 2 if two_norms else 1,
        "num_kv_heads": kv_heads,
        "multi_query": kv_heads == 1,
        "ffn_hidden_size": config["intermediate_size"],
        "bias": "blk.0.attn_qkv.bias" in fields.file,
    }


GGUF = GgufMapping("falcon", gguf_fields, fused_by_kind, needed=NEEDED_OF_LAYER_NORMS)
DEFAULTS = {
    **standard.DEFAULTS,
    "vocab_size": 65024,
    "hidden_size": 4544,
    "num_attention_heads": 71,
    "layer_norm_epsilon": 1e-5,
    "activation": "gelu",
    "multi_query": True,
    "parallel_attn": True,
    "tie_word_embeddings": True,
    "eos_token_id": 11,
}
ALIASES = {"n_embed": "hidden_size"}
FAMILY = Family("falcon", "Falcon", config, block_tensors, end_tensors, gguf=GGUF, defaults=DEFAULTS, aliases=ALIASES)
