"""gpt-oss: experts with biases and a bounded activation, a sink for each head, a window in every other block."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec
import torch
from torch import Tensor

from shoal.model.families import standard
from shoal.model.families.family import Family
from shoal.model.families.fields import MAX_BLOCKS, MAX_EXPERTS, Config, flag, integer, layer_types, number, refuse
from shoal.model.families.gguf_mapping import NEEDED, GgufContents, GgufFields, GgufMapping, GgufPiece, gguf_config
from shoal.model.families.layout import TensorMap, TensorSource, expert
from shoal.model.nn.block import BlockConfig, ModelConfig, StoredTensors
from shoal.model.nn.moe import MoeConfig

TYPES = ("sliding_attention", "full_attention")
ROPE = {"rope_type": "yarn", "factor": 32.0, "truncate": False, "original_max_position_embeddings": 4096}
"""Where the configuration says nothing of it."""


def config(hf: Config) -> ModelConfig:
    """From config.json."""
    refuse(hf, "swiglu_alpha", 1.702)
    if hf.get("rope_parameters") is None and not hf.get("rope_scaling"):
        hf = {**hf, "rope_parameters": ROPE}
    num_blocks = integer(hf, "num_hidden_layers", most=MAX_BLOCKS)
    types = layer_types(hf, num_blocks, TYPES, [TYPES[index % 2] for index in range(num_blocks)])
    bias = flag(hf, "attention_bias")
    stored = StoredTensors(attention_bias=bias, output_bias=bias)
    num_experts = integer(hf, "num_local_experts", most=MAX_EXPERTS)
    moe = MoeConfig(
        num_experts=num_experts,
        experts_per_token=integer(hf, "num_experts_per_tok", most=num_experts),
        intermediate_size=integer(hf, "intermediate_size"),
        scores="softmax_of_chosen",
    )
    full = standard.block_config(
        hf,
        activation="quick_gelu",
        mlp_limit=number(hf, "swiglu_limit"),
        sinks=True,
        moe=moe,
    )
    local = msgspec.structs.replace(full, window=integer(hf, "sliding_window"))
    kinds = dict(zip(TYPES, (local, full), strict=True))
    return standard.model_config(hf, full, stored=stored, **standard.differing(kinds, types))


def block_tensors(config: ModelConfig, index: int) -> TensorMap:
    """All experts are stacked in one tensor; gate and up alternate in it."""
    shape, prefix = config.block_config(index), f"model.layers.{index}."
    assert shape.moe is not None
    tensors = {**standard.norm_tensors(shape, prefix), **standard.attention_tensors(shape, prefix, config.stored)}
    tensors["sinks"] = TensorSource(f"{prefix}self_attn.sinks", (shape.num_heads,))
    tensors.update(standard.linear("router", f"{prefix}mlp.router", shape.moe.num_experts, shape.hidden_size, True))
    for index_of_expert in range(shape.moe.num_experts):
        tensors.update(_expert(shape, f"{prefix}mlp.experts.", index_of_expert))
    return tensors


def _expert(shape: BlockConfig, prefix: str, index: int) -> TensorMap:
    assert shape.moe is not None
    count, hidden, inner = shape.moe.num_experts, shape.hidden_size, shape.moe.intermediate_size
    tensors: TensorMap = {}
    for role, start in (("gate", 0), ("up", 1)):
        take = expert(index, start, 2)
        tensors[f"experts.{index}.{role}.weight"] = TensorSource(
            f"{prefix}gate_up_proj", (count, hidden, 2 * inner), take
        )
        tensors[f"experts.{index}.{role}.bias"] = TensorSource(f"{prefix}gate_up_proj_bias", (count, 2 * inner), take)
    tensors[f"experts.{index}.down.weight"] = TensorSource(f"{prefix}down_proj", (count, inner, hidden), expert(index))
    tensors[f"experts.{index}.down.bias"] = TensorSource(f"{prefix}down_proj_bias", (count, hidden), expert(index))
    return tensors


def gguf_fields(fields: GgufFields) -> dict[str, Any]:
    """From GGUF's metadata."""
    config = gguf_config(fields)
    config["rope_parameters"]["truncate"] = False
    config["intermediate_size"] = fields.get("expert_feed_forward_length", config["intermediate_size"])
    return config


_EXPERTS = re.compile(r"model\.layers\.(\d+)\.mlp\.experts\.(gate_up|down)_proj(_bias)?")


def gguf_piece(file: GgufContents, name: str) -> GgufPiece | None:
    """Sinks; experts, whose gate and up are apart in GGUF and alternate in HF, and whose matrices lie the other way round."""
    if name.endswith("self_attn.sinks"):
        return GgufPiece((f"blk.{name.split('.')[2]}.attn_sinks.weight",))
    found = _EXPERTS.fullmatch(name)
    if found is None:
        return None
    kind = "bias" if found[3] else "weight"
    parts = ("gate", "up") if found[2] == "gate_up" else ("down",)
    names = tuple(f"blk.{found[1]}.ffn_{part}_exps.{kind}" for part in parts)
    if any(held not in file for held in names):
        return None

    def restore(tensors: Sequence[Tensor]) -> Tensor:
        joined = torch.stack(list(tensors), 2).flatten(1, 2) if len(tensors) == 2 else tensors[0]
        return joined if kind == "bias" else joined.transpose(1, 2).contiguous()

    return GgufPiece(names, None, restore)


GGUF = GgufMapping(
    "gpt-oss",
    gguf_fields,
    piece=gguf_piece,
    needed=(
        *(*NEEDED, "attention.sliding_window", "expert_count", "expert_used_count"),
        *("rope.freq_base", "rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length"),
    ),
)
DEFAULTS = {
    **standard.DEFAULTS,
    "vocab_size": 201088,
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "num_hidden_layers": 36,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 150_000.0,
    "attention_bias": True,
    "sliding_window": 128,
    "num_local_experts": 128,
    "num_experts_per_tok": 4,
    "swiglu_limit": 7.0,
    "eos_token_id": None,
}
ALIASES = {"num_experts": "num_local_experts"}
FAMILY = Family("gpt_oss", "gpt-oss", config, block_tensors, standard.end_tensors, ("fp32",), GGUF, DEFAULTS, ALIASES)
