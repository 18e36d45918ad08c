"""Qwen 2 and 2.5: Llama with biases on q, k and v."""

from __future__ import annotations

import msgspec

from shoal.errors import CheckpointError
from shoal.model.families import standard
from shoal.model.families.family import Family
from shoal.model.families.fields import MAX_BLOCKS, Config, flag, integer, layer_types
from shoal.model.families.gguf_mapping import GgufMapping
from shoal.model.nn.block import BlockConfig, ModelConfig, StoredTensors

TYPES = ("full_attention", "sliding_attention")


def config(hf: Config) -> ModelConfig:
    """From config.json."""
    return windowed(hf, standard.block_config(hf), StoredTensors(attention_bias=True))


def windowed(hf: Config, block: BlockConfig, stored: StoredTensors) -> ModelConfig:
    """A model whose blocks from `max_window_layers` on (or by `layer_types`) have a window, if `use_sliding_window` says so."""
    num_blocks = integer(hf, "num_hidden_layers", most=MAX_BLOCKS)
    if not flag(hf, "use_sliding_window") or hf.get("sliding_window") is None:
        if TYPES[1] in layer_types(hf, num_blocks, TYPES, [TYPES[0]] * num_blocks):
            raise CheckpointError("the configuration's layer_types have windows, which it gives no width")
        return standard.model_config(hf, block, stored=stored)
    first = integer(hf, "max_window_layers", least=0)
    default = [TYPES[index >= first] for index in range(num_blocks)]
    kinds = {TYPES[0]: block, TYPES[1]: msgspec.structs.replace(block, window=integer(hf, "sliding_window"))}
    types = layer_types(hf, num_blocks, TYPES, default)
    return standard.model_config(hf, block, stored=stored, **standard.differing(kinds, types))


GGUF = GgufMapping("qwen2")
DEFAULTS = {
    **standard.DEFAULTS,
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "eos_token_id": None,
}
FAMILY = Family(
    "qwen2", "Qwen 2, 2.5", config, standard.dense_tensors, standard.end_tensors, gguf=GGUF, defaults=DEFAULTS
)
