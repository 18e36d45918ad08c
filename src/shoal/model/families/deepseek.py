"""DeepSeek V2 and V3: latent attention, experts in groups beside shared ones, dense blocks first."""

from __future__ import annotations

from typing import Any

import msgspec
import torch

from shoal.errors import CheckpointError, UnsupportedModel
from shoal.model.families import standard
from shoal.model.families.family import Family
from shoal.model.families.fields import (
    MAX_BLOCKS,
    MAX_EXPERTS,
    Config,
    activation,
    flag,
    integer,
    number,
    optional_number,
    refuse,
    rope,
    yarn_scale,
)
from shoal.model.families.gguf_mapping import NEEDED, GgufContents, GgufFields, GgufMapping, GgufPiece, gguf_config
from shoal.model.families.layout import TensorMap, TensorSource, unpaired
from shoal.model.families.qwen3_moe import expert_tensors
from shoal.model.nn.block import BlockConfig, ModelConfig, StoredTensors
from shoal.model.nn.mla import LatentConfig
from shoal.model.nn.moe import MoeConfig
from shoal.model.nn.rope import RopeConfig


def config_v2(hf: Config) -> ModelConfig:
    """From V2's config.json."""
    method = hf.get("topk_method")
    if method not in ("greedy", "group_limited_greedy"):
        raise UnsupportedModel(f"topk_method = {method!r} is not supported")
    refuse(hf, "norm_topk_prob", False)
    refuse(hf, "scoring_func", "softmax")
    grouped = method == "group_limited_greedy"
    moe = MoeConfig(**_experts(hf, grouped), scores="softmax", scale=number(hf, "routed_scaling_factor"))
    return _config(hf, moe)


def config_v3(hf: Config) -> ModelConfig:
    """From V3's (and R1's) config.json."""
    refuse(hf, "scoring_func", "sigmoid")
    refuse(hf, "topk_method", "noaux_tc")
    refuse(hf, "rope_interleave", True)
    moe = MoeConfig(
        **_experts(hf, True),
        scores="sigmoid",
        normalized=flag(hf, "norm_topk_prob"),
        scale=number(hf, "routed_scaling_factor"),
        correction=True,
    )
    if moe.num_groups > 1 and moe.num_experts // moe.num_groups < 2:
        raise CheckpointError(f"{moe.num_experts} experts in {moe.num_groups} groups: a group needs two")
    return _config(hf, moe)


def _experts(hf: Config, grouped: bool) -> dict[str, Any]:
    count, inner = integer(hf, "n_routed_experts", most=MAX_EXPERTS), integer(hf, "moe_intermediate_size")
    groups = integer(hf, "n_group", 1, count) if grouped else 1
    taken = integer(hf, "topk_group", 1, MAX_EXPERTS) if grouped else 1
    chosen = integer(hf, "num_experts_per_tok", most=count)
    if count % groups or taken > groups or chosen > taken * (count // groups):
        raise CheckpointError(f"{count} experts in {groups} groups: {chosen} of {taken} groups cannot be chosen")
    return {
        "num_experts": count,
        "experts_per_token": chosen,
        "intermediate_size": inner,
        "num_groups": groups,
        "groups_per_token": taken,
        "shared_size": inner * integer(hf, "n_shared_experts"),
    }


def _config(hf: Config, moe: MoeConfig) -> ModelConfig:
    refuse(hf, "moe_layer_freq", 1)
    bias = flag(hf, "attention_bias")
    latent = LatentConfig(
        query_rank=integer(hf, "q_lora_rank", 0, least=0),
        rank=integer(hf, "kv_lora_rank"),
        plain_dim=integer(hf, "qk_nope_head_dim"),
        rotary_dim=integer(hf, "qk_rope_head_dim"),
        value_dim=integer(hf, "v_head_dim"),
    )
    if latent.rotary_dim % 2:
        raise CheckpointError(f"{latent.rotary_dim} dimensions do not turn in pairs")
    turning = rope(hf, latent.rotary_dim)
    dense = BlockConfig(
        hidden_size=integer(hf, "hidden_size"),
        num_heads=integer(hf, "num_attention_heads"),
        num_kv_heads=1,
        head_dim=latent.rank + latent.rotary_dim,
        intermediate_size=integer(hf, "intermediate_size"),
        norm_eps=number(hf, "rms_norm_eps"),
        rope=turning,
        activation=activation(hf),
        query_scale=_scale(hf, latent, turning),
        rotary_dim=latent.rotary_dim,
        latent=latent,
    )
    mixed = msgspec.structs.replace(dense, moe=moe)
    num_blocks = integer(hf, "num_hidden_layers", most=MAX_BLOCKS)
    first = integer(hf, "first_k_dense_replace", least=0)
    types = tuple("mixed" if index >= first else "dense" for index in range(num_blocks))
    stored = StoredTensors(attention_bias=bias, output_bias=bias, mlp_bias=flag(hf, "mlp_bias"))
    return standard.model_config(
        hf, dense, stored=stored, **standard.differing({"dense": dense, "mixed": mixed}, types)
    )


def _scale(hf: Config, latent: LatentConfig, turning: RopeConfig) -> float:
    """1 / √(width of a head), larger where the context was stretched."""
    given = hf.get("rope_parameters") or hf.get("rope_scaling") or {}
    all_dim = 0.0 if turning.kind == "default" else optional_number(given, "mscale_all_dim")
    stretch = yarn_scale(turning.factor, all_dim) if all_dim else 1.0
    return float((latent.plain_dim + latent.rotary_dim) ** -0.5 * stretch * stretch)


def block_tensors(config: ModelConfig, index: int) -> TensorMap:
    """Latent projections, an MLP or experts, and shared experts."""
    shape, prefix = config.block_config(index), f"model.layers.{index}."
    stored = config.stored
    tensors = {**standard.norm_tensors(shape, prefix), **_latent_tensors(shape, prefix + "self_attn.", stored)}
    tensors.update(expert_tensors(shape, prefix, stored.mlp_bias))
    if shape.moe is not None:
        tensors.update(
            standard.mlp_tensors(
                shape, f"{prefix}mlp.shared_experts.", stored.mlp_bias, "shared.", shape.moe.shared_size
            )
        )
        if shape.moe.correction:
            name = f"{prefix}mlp.gate.e_score_correction_bias"
            tensors["router.correction"] = TensorSource(name, (shape.moe.num_experts,))
    return tensors


def _latent_tensors(shape: BlockConfig, prefix: str, stored: StoredTensors) -> TensorMap:
    """The rotary dimensions are stored as neighbouring pairs."""
    latent = shape.latent
    assert latent is not None
    heads, dim = shape.num_heads, latent.plain_dim + latent.rotary_dim
    turned = unpaired(dim, latent.plain_dim, latent.rotary_dim)
    tensors: TensorMap = {}
    if latent.query_rank:
        tensors.update(
            standard.linear("q_a", f"{prefix}q_a_proj", latent.query_rank, shape.hidden_size, stored.attention_bias)
        )
        tensors["q_a_norm.weight"] = TensorSource(f"{prefix}q_a_layernorm.weight", (latent.query_rank,))
        tensors["q_b.weight"] = TensorSource(f"{prefix}q_b_proj.weight", (heads * dim, latent.query_rank), turned)
    else:
        tensors["q.weight"] = TensorSource(f"{prefix}q_proj.weight", (heads * dim, shape.hidden_size), turned)
    down = standard.linear(
        "kv_a", f"{prefix}kv_a_proj_with_mqa", shape.head_dim, shape.hidden_size, stored.attention_bias
    )
    turned = unpaired(shape.head_dim, latent.rank, latent.rotary_dim)
    tensors.update({role: each._replace(take=turned) for role, each in down.items()})
    tensors["kv_a_norm.weight"] = TensorSource(f"{prefix}kv_a_layernorm.weight", (latent.rank,))
    both = heads * (latent.plain_dim + latent.value_dim)
    tensors["kv_b.weight"] = TensorSource(f"{prefix}kv_b_proj.weight", (both, latent.rank))
    tensors.update(
        standard.linear("o", f"{prefix}o_proj", shape.hidden_size, heads * latent.value_dim, stored.output_bias)
    )
    return tensors


_SIGMOID = 2


def _of_v3(fields: GgufFields) -> bool:
    """By how experts are chosen; files that do not say it have the bias of choosing, or not."""
    given, blocks = fields.get("expert_gating_func"), fields.get("block_count")
    if given is not None or not isinstance(blocks, int):
        return bool(given == _SIGMOID)
    return any(f"blk.{index}.exp_probs_b.bias" in fields.file for index in range(min(blocks, MAX_BLOCKS)))


def gguf_v2(fields: GgufFields) -> dict[str, Any]:
    """From GGUF's metadata."""
    groups = fields.get("expert_group_count", 1)
    return {**_gguf(fields), "topk_method": "greedy" if groups == 1 else "group_limited_greedy"}


def gguf_v3(fields: GgufFields) -> dict[str, Any]:
    """From GGUF's metadata."""
    return {**_gguf(fields), "topk_method": "noaux_tc"}


def _gguf(fields: GgufFields) -> dict[str, Any]:
    """From files of the form before latent attention's matrices were taken apart and after."""
    config = gguf_config(fields)
    groups = fields.get("expert_group_count")
    turning, stretch = fields.get("rope.dimension_count"), fields.get("rope.scaling.yarn_log_multiplier")
    key_length = fields.get("attention.key_length_mla", config.pop("head_dim"))
    if isinstance(turning, int) and isinstance(key_length, int):
        config["qk_nope_head_dim"] = key_length - turning
    if isinstance(stretch, float):
        config["rope_parameters"]["mscale"] = config["rope_parameters"]["mscale_all_dim"] = 10 * stretch
    return {
        **config,
        "q_lora_rank": fields.get("attention.q_lora_rank") if "blk.0.attn_q_a.weight" in fields.file else 0,
        "kv_lora_rank": fields.get("attention.kv_lora_rank"),
        "qk_rope_head_dim": turning,
        "v_head_dim": fields.get("attention.value_length_mla", fields.get("attention.value_length")),
        "n_routed_experts": config["num_local_experts"],
        "n_shared_experts": fields.get("expert_shared_count"),
        "first_k_dense_replace": fields.get("leading_dense_block_count"),
        "n_group": groups,
        "topk_group": fields.get(
            "expert_group_used_count", None if groups is None else 0
        ),  # 0 is refused where it counts
        "norm_topk_prob": fields.get("expert_weights_norm"),
        "routed_scaling_factor": fields.get("expert_weights_scale"),
    }


def gguf_piece(file: GgufContents, name: str) -> GgufPiece | None:
    """The latent vector's expansion, whose keys (transposed) and values are apart in newer files; the bias of choosing."""
    block = name.split(".")[2] if name.count(".") > 2 else ""
    if name.endswith(".e_score_correction_bias") and f"blk.{block}.exp_probs_b.bias" in file:
        return GgufPiece((f"blk.{block}.exp_probs_b.bias",))
    keys, values = (f"blk.{block}.attn_{part}_b.weight" for part in "kv")
    if not name.endswith(".kv_b_proj.weight") or keys not in file or values not in file:
        return None
    return GgufPiece(
        (keys, values), None, lambda parts: torch.cat([parts[0].transpose(1, 2), parts[1]], 1).flatten(0, 1)
    )


NEEDED_OF_V2 = (*NEEDED, "expert_count", "expert_used_count", "expert_weights_scale")
NEEDED_OF_V3 = (*NEEDED_OF_V2, "expert_weights_norm")
V2_DEFAULTS = {
    **standard.DEFAULTS,
    "vocab_size": 102_400,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "moe_intermediate_size": 1407,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "first_k_dense_replace": 0,
    "topk_method": "greedy",
    "routed_scaling_factor": 1.0,
}
V3_DEFAULTS = {
    **V2_DEFAULTS,
    "vocab_size": 129_280,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "max_position_embeddings": 4096,
    "moe_intermediate_size": 2048,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "first_k_dense_replace": 3,
    "n_group": 8,
    "topk_group": 4,
    "topk_method": None,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "eos_token_id": 1,
}
V2 = Family(
    "deepseek_v2",
    "DeepSeek V2",
    config_v2,
    block_tensors,
    standard.end_tensors,
    ("fp32",),
    GgufMapping("deepseek2", gguf_v2, piece=gguf_piece, claims=lambda fields: not _of_v3(fields), needed=NEEDED_OF_V2),
    V2_DEFAULTS,
    {"num_experts": "n_routed_experts", "num_local_experts": "n_routed_experts"},
)
V3 = Family(
    "deepseek_v3",
    "DeepSeek V3, R1",
    config_v3,
    block_tensors,
    standard.end_tensors,
    ("fp32",),
    GgufMapping("deepseek2", gguf_v3, piece=gguf_piece, claims=_of_v3, needed=NEEDED_OF_V3),
    V3_DEFAULTS,
    {"num_local_experts": "n_routed_experts"},
)
