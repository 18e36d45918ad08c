"""Phi 3 and 4: Llama whose q, k and v are one tensor, and gate and up another."""

from __future__ import annotations

from collections.abc import Mapping

from shoal.errors import UnsupportedModel
from shoal.model.families import standard
from shoal.model.families.family import Family
from shoal.model.families.fields import Config
from shoal.model.families.gguf_mapping import GgufMapping, partly_turning
from shoal.model.families.layout import TensorMap, TensorSource, rows
from shoal.model.families.mistral import window
from shoal.model.nn.block import ModelConfig


def config(hf: Config) -> ModelConfig:
    """From config.json. Its stretched rope is "longrope", whatever its name."""
    given = hf.get("rope_scaling") or hf.get("rope_parameters")
    if isinstance(given, Mapping):
        kind = given.get("rope_type") or given.get("type") or "default"
        if kind not in ("default", "longrope", "su", "yarn"):
            raise UnsupportedModel(f"rope scaling {kind!r} is not supported for phi3 (longrope is)")
        kind = "default" if kind == "default" else "longrope"
        hf = {**hf, "rope_scaling": {**given, "rope_type": kind}, "rope_parameters": None}
    return standard.model_config(hf, standard.block_config(hf, window=window(hf)))


def block_tensors(config: ModelConfig, index: int) -> TensorMap:
    """Llama's names, but for the fused tensors."""
    shape, prefix = config.block_config(index), f"model.layers.{index}."
    query, kv = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    hidden, name = shape.hidden_size, f"{prefix}self_attn.qkv_proj.weight"
    edges = (0, query, query + kv, query + 2 * kv)
    return {
        **standard.norm_tensors(shape, prefix),
        **{
            f"{role}.weight": TensorSource(name, (edges[3], hidden), rows(edges[i], edges[i + 1]))
            for i, role in enumerate("qkv")
        },
        **standard.linear("o", prefix + standard.MATRICES["o"], hidden, query, False),
        **fused_mlp_tensors(hidden, shape.intermediate_size, prefix),
    }


def fused_mlp_tensors(hidden: int, inner: int, prefix: str) -> TensorMap:
    """Gate and up in one tensor, one after the other."""
    name = f"{prefix}mlp.gate_up_proj.weight"
    return {
        "gate.weight": TensorSource(name, (2 * inner, hidden), rows(0, inner)),
        "up.weight": TensorSource(name, (2 * inner, hidden), rows(inner, 2 * inner)),
        **standard.linear("down", f"{prefix}mlp.down_proj", hidden, inner, False),
    }


GGUF = GgufMapping("phi3", partly_turning)
DEFAULTS = {
    **standard.DEFAULTS,
    "vocab_size": 32064,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "max_position_embeddings": 4096,
    "original_max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "eos_token_id": 32000,
}
FAMILY = Family("phi3", "Phi 3, 4", config, block_tensors, standard.end_tensors, gguf=GGUF, defaults=DEFAULTS)
