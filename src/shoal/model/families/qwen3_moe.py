"""Qwen 3 with experts in all blocks or some."""

from __future__ import annotations

import msgspec

from shoal.errors import CheckpointError
from shoal.model.families import standard
from shoal.model.families.family import Family
from shoal.model.families.fields import MAX_BLOCKS, Config, flag, integer, refuse
from shoal.model.families.gguf_mapping import NEEDED, GgufMapping, gguf_config
from shoal.model.families.layout import TensorMap
from shoal.model.families.mixtral import moe_config
from shoal.model.nn.block import BlockConfig, ModelConfig, StoredTensors


def config(hf: Config) -> ModelConfig:
    """From config.json."""
    refuse(hf, "use_sliding_window", False)
    bias = flag(hf, "attention_bias")
    stored = StoredTensors(attention_bias=bias, output_bias=bias)
    dense = standard.block_config(hf, qk_norm="head")
    moe = moe_config(hf, "num_experts", flag(hf, "norm_topk_prob"))
    mixed = msgspec.structs.replace(dense, moe=moe)
    num_blocks, step = integer(hf, "num_hidden_layers", most=MAX_BLOCKS), integer(hf, "decoder_sparse_step")
    only = hf.get("mlp_only_layers") or []
    if not isinstance(only, list):
        raise CheckpointError(f"the configuration's mlp_only_layers are {only!r}, not a list")
    types = tuple("dense" if i in only or (i + 1) % step else "mixed" for i in range(num_blocks))
    return standard.model_config(
        hf, mixed, stored=stored, **standard.differing({"dense": dense, "mixed": mixed}, types)
    )


def block_tensors(config: ModelConfig, index: int) -> TensorMap:
    """Qwen 3's names beside those of the experts."""
    shape, prefix = config.block_config(index), f"model.layers.{index}."
    attention = {**standard.norm_tensors(shape, prefix), **standard.attention_tensors(shape, prefix, config.stored)}
    return {**attention, **expert_tensors(shape, prefix, config.stored.mlp_bias)}


def expert_tensors(shape: BlockConfig, prefix: str, bias: bool) -> TensorMap:
    """A dense MLP, or a router and its experts under `mlp.`."""
    if shape.moe is None:
        return standard.mlp_tensors(shape, prefix + "mlp.", bias)
    moe = shape.moe
    tensors = standard.linear("router", f"{prefix}mlp.gate", moe.num_experts, shape.hidden_size, False)
    for expert in range(moe.num_experts):
        name, roles = f"{prefix}mlp.experts.{expert}.", f"experts.{expert}."
        tensors.update(standard.mlp_tensors(shape, name, bias, roles=roles, inner=moe.intermediate_size))
    return tensors


GGUF = GgufMapping(
    "qwen3moe",
    lambda fields: {**gguf_config(fields), "norm_topk_prob": True},
    needed=(*NEEDED, "expert_count", "expert_used_count"),
)
DEFAULTS = {
    **standard.DEFAULTS,
    "vocab_size": 151936,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 24,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
    "decoder_sparse_step": 1,
    "moe_intermediate_size": 768,
    "num_experts_per_tok": 8,
    "num_experts": 128,
    "norm_topk_prob": False,
    "eos_token_id": None,
}
ALIASES = {"num_local_experts": "num_experts"}
FAMILY = Family(
    "qwen3_moe", "Qwen 3 MoE", config, block_tensors, standard.end_tensors, ("fp32",), GGUF, DEFAULTS, ALIASES
)
