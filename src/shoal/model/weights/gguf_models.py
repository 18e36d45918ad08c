"""GGUF's architectures: their metadata as HF's configuration, and what their writer did to the tensors, undone.

Names are the `gguf` package's tables. What its converters reorder is described in llama.cpp's convert_hf_to_gguf.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from shoal.errors import CheckpointError, UnsupportedModel
from shoal.model.families import TensorSource
from shoal.model.weights.gguf_file import GgufFile

Config = Mapping[str, Any]
Restore = Callable[[Sequence[Tensor]], Tensor]
_EXPERT = re.compile(r"\.experts\.(\d+)\.")
_BLOCK = re.compile(r"\.(?:layers|h)\.(\d+)\.")


class GgufPiece(NamedTuple):
    """One of HF's tensors: the file's tensors that it is made of, which of a stack, and how (None: it is the first)."""

    names: tuple[str, ...]
    expert: int | None = None
    restore: Restore | None = None


class Fields:
    """An architecture's metadata."""

    def __init__(self, file: GgufFile, architecture: str) -> None:
        self.file = file
        self._prefix = architecture

    def get(self, key: str, default: Any = None) -> Any:
        """The field `architecture.key`."""
        return self.file.metadata.get(f"{self._prefix}.{key}", default)


def _common(fields: Fields) -> dict[str, Any]:
    """What all architectures have."""
    file = fields.file
    if "token_embd.weight" not in file or len(file.info("token_embd.weight").shape) != 2:
        raise CheckpointError(f"{file.source.name} has no token embedding of [tokens, hidden size]")
    vocab, hidden = file.info("token_embd.weight").shape
    heads = fields.get("attention.head_count")
    return {
        "hidden_size": hidden,
        "vocab_size": vocab,
        "num_hidden_layers": fields.get("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": fields.get("attention.head_count_kv", heads),
        "head_dim": fields.get("attention.key_length"),
        "intermediate_size": fields.get("feed_forward_length"),
        "rms_norm_eps": fields.get("attention.layer_norm_rms_epsilon"),
        "layer_norm_epsilon": fields.get("attention.layer_norm_epsilon"),
        "max_position_embeddings": fields.get("context_length"),
        "sliding_window": fields.get("attention.sliding_window") or None,
        "tie_word_embeddings": "output.weight" not in file,
        "attention_bias": "blk.0.attn_q.bias" in file,
        "mlp_bias": "blk.0.ffn_down.bias" in file,
        "num_local_experts": fields.get("expert_count") or None,
        "num_experts_per_tok": fields.get("expert_used_count") or None,
        "moe_intermediate_size": fields.get("expert_feed_forward_length"),
        "attn_logit_softcapping": fields.get("attn_logit_softcapping"),
        "final_logit_softcapping": fields.get("final_logit_softcapping"),
        "bos_token_id": file.metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": file.metadata.get("tokenizer.ggml.eos_token_id"),
        "rope_parameters": _rope(fields),
    }


def _rope(fields: Fields) -> dict[str, Any]:
    file, kind = fields.file, fields.get("rope.scaling.type")
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": fields.get("rope.freq_base", 10_000.0)}
    if "rope_freqs.weight" in file:
        # Llama 3.1's scaling, worked out per frequency by whoever wrote the file.
        rope["factors"] = file.read("rope_freqs.weight").tolist()
    elif "rope_factors_long.weight" in file:
        rope["rope_type"] = "longrope"
        rope["short_factor"] = file.read("rope_factors_short.weight").tolist()
        rope["long_factor"] = file.read("rope_factors_long.weight").tolist()
        rope["attention_factor"] = fields.get("rope.scaling.attn_factor")
    elif kind not in (None, "none"):
        rope["rope_type"] = kind
        rope["factor"] = fields.get("rope.scaling.factor", 1.0)
    if fields.get("rope.scaling.original_context_length") is not None:
        rope["original_max_position_embeddings"] = fields.get("rope.scaling.original_context_length")
    return rope


def _llama(fields: Fields) -> dict[str, Any]:
    config = _common(fields)
    config["head_dim"] = fields.get("attention.key_length", fields.get("rope.dimension_count"))
    return config


def _gemma(fields: Fields, last_blocks: int) -> dict[str, Any]:
    """The largest model of each generation scales its queries by the width of a head as it would be by division."""
    config = _common(fields)
    if config["num_hidden_layers"] == last_blocks and isinstance(config["num_attention_heads"], int):
        config["query_pre_attn_scalar"] = config["hidden_size"] // max(1, config["num_attention_heads"])
    else:
        config["query_pre_attn_scalar"] = config["head_dim"]
    return config


def _gemma3(fields: Fields) -> dict[str, Any]:
    config = _gemma(fields, 62)
    full = config.pop("rope_parameters")
    local = {"rope_type": "default", "rope_theta": fields.get("rope.freq_base_swa", 10_000.0)}
    config["rope_parameters"] = {"full_attention": full, "sliding_attention": local}
    return config


def _partial(fields: Fields) -> dict[str, Any]:
    """A part of each head turns."""
    config = _common(fields)
    heads = config["num_attention_heads"]
    if config["head_dim"] is None and isinstance(heads, int) and heads > 0:
        config["head_dim"] = config["hidden_size"] // heads
    turning = fields.get("rope.dimension_count")
    if isinstance(turning, int) and isinstance(config["head_dim"], int) and config["head_dim"] > 0:
        config["partial_rotary_factor"] = turning / config["head_dim"]
    return config


def _qwen3_moe(fields: Fields) -> dict[str, Any]:
    return {**_common(fields), "norm_topk_prob": True}


def _gpt_oss(fields: Fields) -> dict[str, Any]:
    config = _common(fields)
    config["rope_parameters"]["truncate"] = False
    config["intermediate_size"] = fields.get("expert_feed_forward_length", config["intermediate_size"])
    return config


def _bloom(fields: Fields) -> dict[str, Any]:
    config = _common(fields)
    return {**config, "n_layer": config["num_hidden_layers"], "n_head": config["num_attention_heads"]}


def _falcon(fields: Fields) -> dict[str, Any]:
    config = _common(fields)
    new = "blk.0.attn_norm_2.weight" in fields.file
    kv_heads = config["num_key_value_heads"]
    return {
        **config,
        "new_decoder_architecture": new,
        "num_kv_heads": kv_heads,
        "multi_query": kv_heads == 1,
        "ffn_hidden_size": config["intermediate_size"],
        "bias": "blk.0.attn_qkv.bias" in fields.file,
    }


def _deepseek(fields: Fields) -> dict[str, Any]:
    """V2 and V3, in files of the form before latent attention's matrices were taken apart and after."""
    config = _common(fields)
    rank, turning = fields.get("attention.kv_lora_rank"), fields.get("rope.dimension_count")
    key_length = fields.get("attention.key_length_mla", config.pop("head_dim"))
    if isinstance(turning, int) and isinstance(key_length, int):
        config["qk_nope_head_dim"] = key_length - turning
    groups, stretch = fields.get("expert_group_count", 1), fields.get("rope.scaling.yarn_log_multiplier")
    if isinstance(stretch, float):
        config["rope_parameters"]["mscale"] = config["rope_parameters"]["mscale_all_dim"] = 10 * stretch
    sigmoid = fields.get("expert_gating_func") == _SIGMOID
    return {
        **config,
        "model_type": "deepseek_v3" if sigmoid else "deepseek_v2",
        "topk_method": "noaux_tc" if sigmoid else "greedy" if groups == 1 else "group_limited_greedy",
        "q_lora_rank": fields.get("attention.q_lora_rank"),
        "kv_lora_rank": rank,
        "qk_rope_head_dim": turning,
        "v_head_dim": fields.get("attention.value_length_mla", fields.get("attention.value_length")),
        "n_routed_experts": config["num_local_experts"],
        "n_shared_experts": fields.get("expert_shared_count"),
        "first_k_dense_replace": fields.get("leading_dense_block_count", 0),
        "n_group": groups,
        "topk_group": fields.get("expert_group_used_count", 1),
        "norm_topk_prob": fields.get("expert_weights_norm", False),
        "routed_scaling_factor": fields.get("expert_weights_scale", 1.0),
    }


_SIGMOID = 2


def _unpermuted(heads: int) -> Restore:
    """Pairs of a head's dimensions next to each other become two halves."""

    def restore(parts: Sequence[Tensor]) -> Tensor:
        (tensor,) = parts
        pairs = tensor.view(heads, tensor.shape[0] // heads // 2, 2, *tensor.shape[1:])
        return pairs.transpose(1, 2).reshape(tensor.shape)

    return restore


def _of_llama(name: str, config: Config) -> Restore | None:
    for part, field in (("self_attn.q_proj", "num_attention_heads"), ("self_attn.k_proj", "num_key_value_heads")):
        if part in name:
            return _unpermuted(config[field])
    return None


def _of_gemma(name: str, config: Config) -> Restore | None:
    """Norms are stored as 1 + w."""
    return (lambda parts: parts[0] - 1.0) if name.endswith("norm.weight") else None


def _of_fused(name: str, config: Config) -> Restore | None:
    """q, k and v of all heads one after the other become those of each group of heads."""
    if "query_key_value" not in name:
        return None
    heads, kv_heads = config["num_attention_heads"], config.get("num_kv_heads", config["num_attention_heads"])

    def restore(parts: Sequence[Tensor]) -> Tensor:
        (tensor,) = parts
        each = tensor.view(heads + 2 * kv_heads, -1, *tensor.shape[1:])
        query = each[:heads].view(kv_heads, heads // kv_heads, *each.shape[1:])
        key, value = each[heads : heads + kv_heads, None], each[heads + kv_heads :, None]
        return torch.cat([query, key, value], 1).reshape(tensor.shape)

    return restore


class Architecture(NamedTuple):
    """What a GGUF architecture is called elsewhere (its fields may say otherwise), its configuration, its tensors' changes."""

    model_type: str
    config: Callable[[Fields], dict[str, Any]] = _common
    restore: Callable[[str, Config], Restore | None] = lambda name, config: None


ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture("llama", _llama, _of_llama),
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3"),
    "qwen3moe": Architecture("qwen3_moe", _qwen3_moe),
    "gemma2": Architecture("gemma2", lambda fields: _gemma(fields, 46), _of_gemma),
    "gemma3": Architecture("gemma3_text", _gemma3, _of_gemma),
    "phi3": Architecture("phi3", _partial),
    "olmo2": Architecture("olmo2"),
    "glm4": Architecture("glm4", _partial),
    "gpt-oss": Architecture("gpt_oss", _gpt_oss),
    "deepseek2": Architecture("deepseek_v3", _deepseek),
    "bloom": Architecture("bloom", _bloom, _of_fused),
    "falcon": Architecture("falcon", _falcon, _of_fused),
}


def _architecture(file: GgufFile) -> tuple[str, Architecture]:
    name = file.metadata.get("general.architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise UnsupportedModel(
            f"{file.source.name} holds a model of architecture {name!r}; from GGUF these are read: {', '.join(ARCHITECTURES)}"
        )
    return name, ARCHITECTURES[name]


def hf_config(file: GgufFile) -> Config:
    """The metadata in the layout of HF's config.json.

    Raises UnsupportedModel for an architecture that is not read, CheckpointError without an embedding.
    """
    name, architecture = _architecture(file)
    config = {"model_type": architecture.model_type, **architecture.config(Fields(file, name))}
    if name == "llama" and config["num_local_experts"] is not None:
        config["model_type"] = "mixtral"
    return {key: value for key, value in config.items() if value is not None}


def piece(file: GgufFile, config: Config, stored: TensorSource) -> GgufPiece | None:
    """Where one of HF's tensors is in the file; None where it is missing."""
    name, architecture = _architecture(file)
    special = {"gpt-oss": _stacked_of_gpt_oss, "deepseek2": _apart_of_deepseek}.get(name)
    if special is not None and (found := special(file, stored.name)) is not None:
        return found
    expert = _EXPERT.search(stored.name)
    held = gguf_name(name, config, _EXPERT.sub(".experts.", stored.name))
    if held is None or held not in file:
        return None
    if expert is None:
        return GgufPiece((held,), None, architecture.restore(stored.name, config))
    stack = file.info(held).shape
    if len(stack) != 3 or int(expert[1]) >= stack[0]:
        raise CheckpointError(f"{file.source.name}: {held} of shape {list(stack)} has no expert {expert[1]}")
    return GgufPiece((held,), int(expert[1]))


_TABLES: dict[str, Any] = {}


def gguf_name(architecture: str, config: Config, name: str) -> str | None:
    """The GGUF name of one of HF's tensors, by the `gguf` package's table for block 0."""
    from gguf.constants import MODEL_ARCH_NAMES
    from gguf.tensor_mapping import get_tensor_name_map

    if architecture not in _TABLES:
        kind = next(kind for kind, known in MODEL_ARCH_NAMES.items() if known == architecture)
        _TABLES[architecture] = get_tensor_name_map(kind, 1)
    block = _BLOCK.search(name)
    first = name if block is None else name[: block.start(1)] + "0" + name[block.end(1) :]
    for candidate in (first, first.partition(".")[2]):
        found = _TABLES[architecture].get_name(candidate, try_suffixes=(".weight", ".bias"))
        if found is not None:
            return str(found) if block is None else str(found).replace("blk.0.", f"blk.{block[1]}.", 1)
    return None


_GPT_OSS = re.compile(r"model\.layers\.(\d+)\.mlp\.experts\.(gate_up|down)_proj(_bias)?")


def _stacked_of_gpt_oss(file: GgufFile, name: str) -> GgufPiece | None:
    """Experts, whose gate and up are apart in GGUF and alternate in HF, and whose matrices lie the other way round."""
    if name.endswith("self_attn.sinks"):
        block = name.split(".")[2]
        return GgufPiece((f"blk.{block}.attn_sinks.weight",))
    found = _GPT_OSS.fullmatch(name)
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


def _apart_of_deepseek(file: GgufFile, name: str) -> GgufPiece | None:
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
