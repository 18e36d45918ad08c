"""Tiny checkpoints as GGUF files, written the way llama.cpp's converter writes them (convert_hf_to_gguf.py)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shoal.model.families import FAMILIES
from shoal.model.families.gguf_mapping import gguf_name
from shoal.model.weights.checkpoint import Checkpoint
from shoal.model.weights.model_source import open_checkpoint

Array = NDArray[np.float32]
_EXPERT = re.compile(r"\.experts\.(\d+)\.")


def architecture_of(model_type: str) -> str | None:
    """What GGUF calls a family; None where it cannot be read from there."""
    if model_type == "mistral":
        return "llama"
    mapping = FAMILIES[model_type].gguf
    return None if mapping is None else mapping.architecture


def write_gguf(directory: Path, path: Path) -> None:
    """A directory of safetensors as one GGUF file in fp32."""
    import gguf

    checkpoint = open_checkpoint(str(directory))
    config = {**checkpoint.config}
    architecture = architecture_of(config["model_type"])
    assert architecture is not None
    writer = gguf.GGUFWriter(str(path), architecture)
    for key, value in _fields(config).items():
        adders = {str: writer.add_string, float: writer.add_float32, bool: writer.add_bool, int: writer.add_uint32}
        adders[type(value)](f"{architecture}.{key}", value)
    writer.add_uint32("tokenizer.ggml.eos_token_id", config["eos_token_id"])
    writer.add_uint32("tokenizer.ggml.padding_token_id", config["pad_token_id"])
    for name, tensor in _tensors(checkpoint, architecture, config):
        writer.add_tensor(name, np.ascontiguousarray(tensor))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _fields(config: dict[str, Any]) -> dict[str, Any]:
    heads = config.get("num_attention_heads") or config["n_head"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    rope = config.get("rope_parameters") or {}
    rope = rope.get("full_attention", rope)
    kv_heads = config.get("num_kv_heads") or config.get("num_key_value_heads") or heads
    if config["model_type"] == "bloom":
        kv_heads = heads
    if config["model_type"] == "falcon" and not config["new_decoder_architecture"]:
        kv_heads = 1 if config["multi_query"] else heads
    fields = {
        "block_count": config.get("num_hidden_layers") or config["n_layer"],
        "context_length": config.get("max_position_embeddings", 2048),
        "embedding_length": config["hidden_size"],
        "vocab_size": config["vocab_size"],
        "feed_forward_length": config.get("ffn_hidden_size") or config["intermediate_size"],
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "attention.layer_norm_rms_epsilon": config.get("rms_norm_eps"),
        "attention.layer_norm_epsilon": config.get("layer_norm_epsilon"),
        "attention.sliding_window": config.get("sliding_window"),
        "attn_logit_softcapping": config.get("attn_logit_softcapping"),
        "final_logit_softcapping": config.get("final_logit_softcapping"),
        "rope.freq_base": rope.get("rope_theta"),
        "rope.dimension_count": int(head_dim * rope.get("partial_rotary_factor", 1.0)),
        "expert_count": config.get("num_local_experts"),
        "expert_used_count": config.get("num_experts_per_tok"),
        "expert_feed_forward_length": config.get("moe_intermediate_size"),
    }
    if config["model_type"] == "gpt_oss":
        fields["expert_feed_forward_length"] = config["intermediate_size"]
    if rope.get("rope_type") == "yarn":
        fields["rope.scaling.type"], fields["rope.scaling.factor"] = "yarn", rope["factor"]
        fields["rope.scaling.original_context_length"] = rope["original_max_position_embeddings"]
    if config["model_type"].startswith("deepseek"):
        fields.update(_deepseek(config, rope))
    return {key: value for key, value in fields.items() if value is not None}


def _deepseek(config: dict[str, Any], rope: dict[str, Any]) -> dict[str, Any]:
    """V2 as older converters wrote it, V3 as newer ones do, which take the latent expansion apart."""
    third = config["model_type"] == "deepseek_v3"
    turning, key_length = config["qk_rope_head_dim"], config["qk_rope_head_dim"] + config["qk_nope_head_dim"]
    lengths = {"key_length": key_length, "value_length": config["v_head_dim"]}
    if third:
        lengths = {**{f"{key}_mla": value for key, value in lengths.items()}, "key_length": 0, "value_length": 0}
        lengths["key_length"], lengths["value_length"] = config["kv_lora_rank"] + turning, config["kv_lora_rank"]
    return {
        **{f"attention.{key}": value for key, value in lengths.items()},
        "attention.q_lora_rank": config["q_lora_rank"],
        "attention.kv_lora_rank": config["kv_lora_rank"],
        "rope.dimension_count": turning,
        "rope.scaling.yarn_log_multiplier": 0.1 * rope["mscale_all_dim"] if "mscale_all_dim" in rope else None,
        "leading_dense_block_count": config["first_k_dense_replace"],
        "expert_count": config.get("n_routed_experts") or config.get("num_local_experts") or config.get("num_experts"),
        "expert_shared_count": config["n_shared_experts"],
        "expert_group_count": config["n_group"] if third or config["topk_method"] != "greedy" else 1,
        "expert_group_used_count": config["topk_group"],
        "expert_weights_scale": float(config["routed_scaling_factor"]),
        "expert_weights_norm": third,
        "expert_gating_func": 2 if third else 1,
    }


def _tensors(checkpoint: Checkpoint, architecture: str, config: dict[str, Any]) -> Iterator[tuple[str, Array]]:
    stacks: dict[str, dict[int, Array]] = {}
    for name in checkpoint.tensors:
        tensor: Array = checkpoint.read(name).numpy()
        expert = _EXPERT.search(name)
        if architecture == "gpt-oss" and ".experts." in name:
            yield from _apart(name, tensor)
            continue
        if name.endswith("correction_bias"):
            yield f"blk.{name.split('.')[2]}.exp_probs_b.bias", tensor
            continue
        if name.endswith("kv_b_proj.weight") and config["model_type"] == "deepseek_v3":
            yield from _latent_apart(name, tensor, config)
            continue
        held = gguf_name(architecture, _EXPERT.sub(".experts.", name))
        assert held is not None, name
        if name.endswith("sinks"):
            held += ".weight"
        if expert is not None:
            stacks.setdefault(held, {})[int(expert[1])] = tensor
        else:
            yield held, _reordered(name, tensor, architecture, config)
    for held, experts in stacks.items():
        yield held, np.stack([experts[index] for index in sorted(experts)])


def _apart(name: str, tensor: Array) -> Iterator[tuple[str, Array]]:
    """gpt-oss' experts: gate and up, which alternate, apart; matrices with their outputs first."""
    block, kind = name.split(".")[2], "bias" if name.endswith("bias") else "weight"
    tensor = tensor if kind == "bias" else tensor.transpose(0, 2, 1)
    if "down_proj" in name:
        yield f"blk.{block}.ffn_down_exps.{kind}", tensor
    else:
        yield f"blk.{block}.ffn_gate_exps.{kind}", tensor[:, 0::2]
        yield f"blk.{block}.ffn_up_exps.{kind}", tensor[:, 1::2]


def _latent_apart(name: str, tensor: Array, config: dict[str, Any]) -> Iterator[tuple[str, Array]]:
    """DeepSeek's keys, transposed, and values for each head."""
    plain, prefix = config["qk_nope_head_dim"], f"blk.{name.split('.')[2]}."
    both = tensor.reshape(config["num_attention_heads"], plain + config["v_head_dim"], -1)
    yield f"{prefix}attn_k_b.weight", both[:, :plain].swapaxes(1, 2)
    yield f"{prefix}attn_v_b.weight", both[:, plain:]


def _reordered(name: str, tensor: Array, architecture: str, config: dict[str, Any]) -> Array:
    if architecture == "llama" and ("q_proj" in name or "k_proj" in name):
        heads = config["num_attention_heads" if "q_proj" in name else "num_key_value_heads"]
        halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
        return halves.swapaxes(1, 2).reshape(tensor.shape)
    if architecture.startswith("gemma") and name.endswith("norm.weight"):
        return tensor + 1
    if "query_key_value" not in name:
        return tensor
    fields = _fields(config)
    groups, heads = fields["attention.head_count_kv"], fields["attention.head_count"]
    parts = tensor.reshape(groups, heads // groups + 2, -1, *tensor.shape[1:])
    each = (parts[:, :-2], parts[:, [-2]], parts[:, [-1]])
    return np.concatenate([part.reshape(-1, *tensor.shape[1:]) for part in each])
