"""OLMo 2: Llama with norms after attention and MLP instead of before, and norms of q and k over all heads."""

from __future__ import annotations

from shoal.model.families import standard
from shoal.model.families.family import Family
from shoal.model.families.fields import Config, flag
from shoal.model.families.gguf_mapping import GgufMapping
from shoal.model.families.layout import TensorMap
from shoal.model.nn.block import ModelConfig, StoredTensors

NORMS = {"post_attention_norm": "post_attention_layernorm", "post_mlp_norm": "post_feedforward_layernorm"}


def config(hf: Config) -> ModelConfig:
    """From config.json."""
    bias = flag(hf, "attention_bias")
    block = standard.block_config(hf, pre_norms=False, post_norms=True, qk_norm="full")
    return standard.model_config(hf, block, stored=StoredTensors(attention_bias=bias, output_bias=bias))


def block_tensors(config: ModelConfig, index: int) -> TensorMap:
    """Llama's names with the two norms."""
    return standard.dense_tensors(config, index, NORMS)


GGUF = GgufMapping("olmo2")
DEFAULTS = {**standard.DEFAULTS, "vocab_size": 50304, "rms_norm_eps": 1e-5, "eos_token_id": 50279}
FAMILY = Family("olmo2", "OLMo 2", config, block_tensors, standard.end_tensors, gguf=GGUF, defaults=DEFAULTS)
