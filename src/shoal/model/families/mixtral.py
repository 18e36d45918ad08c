"""Mixtral: Mistral with experts."""

from __future__ import annotations

from shoal.model.families import standard
from shoal.model.families.family import Family
from shoal.model.families.fields import MAX_EXPERTS, Config, integer
from shoal.model.families.gguf_mapping import NEEDED, GgufMapping, paired_heads
from shoal.model.families.layout import TensorMap
from shoal.model.families.llama import gguf_fields
from shoal.model.families.mistral import window
from shoal.model.nn.block import ModelConfig
from shoal.model.nn.moe import MoeConfig

EXPERT = {"gate": "w1", "up": "w3", "down": "w2"}


def config(hf: Config) -> ModelConfig:
    """From config.json."""
    moe = moe_config(hf, "num_local_experts", normalized=True, width="intermediate_size")
    return standard.model_config(hf, standard.block_config(hf, window=window(hf), moe=moe))


def moe_config(hf: Config, count: str, normalized: bool, width: str = "moe_intermediate_size") -> MoeConfig:
    """Experts under a softmax over all of them; `count` and `width` are the fields of their number and inner width."""
    num_experts = integer(hf, count, most=MAX_EXPERTS)
    return MoeConfig(
        num_experts=num_experts,
        experts_per_token=integer(hf, "num_experts_per_tok", most=num_experts),
        intermediate_size=integer(hf, width),
        normalized=normalized,
    )


def block_tensors(config: ModelConfig, index: int) -> TensorMap:
    """Mistral's names beside the experts' old ones."""
    shape, prefix = config.block_config(index), f"model.layers.{index}."
    assert shape.moe is not None
    inside = f"{prefix}block_sparse_moe."
    tensors = {**standard.norm_tensors(shape, prefix), **standard.attention_tensors(shape, prefix, config.stored)}
    tensors.update(standard.linear("router", f"{inside}gate", shape.moe.num_experts, shape.hidden_size, False))
    hidden, inner = shape.hidden_size, shape.moe.intermediate_size
    for expert in range(shape.moe.num_experts):
        for role, name in EXPERT.items():
            size = (hidden, inner) if role == "down" else (inner, hidden)
            tensors.update(
                standard.linear(f"experts.{expert}.{role}", f"{inside}experts.{expert}.{name}", *size, False)
            )
    return tensors


GGUF = GgufMapping(
    "llama",
    gguf_fields,
    paired_heads,
    claims=lambda fields: bool(fields.get("expert_count")),
    needed=(*NEEDED, "expert_used_count", "rope.freq_base"),
)
DEFAULTS = {
    **standard.DEFAULTS,
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
    "num_experts_per_tok": 2,
    "num_local_experts": 8,
}
ALIASES = {"num_experts": "num_local_experts"}
FAMILY = Family("mixtral", "Mixtral", config, block_tensors, standard.end_tensors, ("fp32",), GGUF, DEFAULTS, ALIASES)
