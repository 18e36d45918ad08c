"""GGUF checkpoints: tensors by their HF names, dequantized to fp32 by the `gguf` package."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shoal.errors import CheckpointError, UnsupportedModel
from shoal.weights.bytesource import ByteSource
from shoal.weights.checkpoint import TensorInfo
from shoal.weights.ggufheader import GgufHeader, read_header, tensor_bytes

_ENDS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_ROPE_FACTORS = "rope_freqs.weight"
_FLOATS = {0: "F32", 1: "F16", 30: "BF16", 28: "F64"}


def hf_name(name: str) -> str | None:
    """The HF name of a Llama tensor; None for one that no model part needs."""
    stem, _, kind = name.rpartition(".")
    if stem in _ENDS:
        return f"{_ENDS[stem]}.{kind}"
    parts = stem.split(".")
    if len(parts) == 3 and parts[0] == "blk" and parts[1].isdecimal() and parts[2] in _BLOCK:
        return f"model.layers.{parts[1]}.{_BLOCK[parts[2]]}.{kind}"
    return None


class GgufCheckpoint:
    """One GGUF file of Llama's architecture."""

    def __init__(self, source: str, file: ByteSource) -> None:
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

        self.source = source
        self.revision = ""
        self._file = file
        self._types = {kind.value: kind for kind in GGMLQuantizationType}
        self._sizes = {kind.value: sizes for kind, sizes in GGML_QUANT_SIZES.items()}
        self._header: GgufHeader = read_header(file, self._sizes)
        self._gguf_names = {hf: name for name in self._header.tensors if (hf := hf_name(name)) is not None}
        self.tensors = {hf: self._info(name) for hf, name in self._gguf_names.items()}
        self.name = str(self._header.metadata.get("general.name") or source.rpartition("/")[2])[:100]
        self.config = self._config()

    @property
    def bytes_read(self) -> int:
        """Checkpoint: bytes of headers and tensors read so far."""
        return self._file.bytes_read

    def _info(self, name: str) -> TensorInfo:
        tensor = self._header.tensors[name]
        return TensorInfo(_FLOATS.get(tensor.type_id, self._types[tensor.type_id].name), tensor.shape)

    def read(self, name: str) -> Tensor:
        """Checkpoint: one tensor in fp32, in HF's layout."""
        tensor = self._read(self._gguf(name))
        field = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}.get(name.split(".")[-2])
        if field is None:
            return tensor
        heads = self.config.get(field)
        if type(heads) is not int or heads < 1 or tensor.shape[0] % (2 * heads):
            raise CheckpointError(f"{self.source}: {tensor.shape[0]} rows of {name} are not {heads!r} heads of pairs")
        return _unpermuted(tensor, heads)

    def _gguf(self, name: str) -> str:
        if name not in self._gguf_names:
            raise CheckpointError(f"{self.source} has no tensor {name}")
        return self._gguf_names[name]

    def _read(self, gguf_name: str) -> Tensor:
        from gguf.quants import dequantize

        tensor = self._header.tensors[gguf_name]
        raw = np.frombuffer(self._file.read(tensor.offset, tensor_bytes(tensor, self._sizes)), dtype=np.uint8)
        try:
            numbers = dequantize(raw.reshape(*tensor.shape[:-1], -1), self._types[tensor.type_id])
        except NotImplementedError as error:
            kind = self._types[tensor.type_id].name
            raise UnsupportedModel(f"{self.source}: the gguf package cannot dequantize {kind} ({gguf_name})") from error
        return torch.from_numpy(np.ascontiguousarray(numbers, dtype=np.float32)).view(tensor.shape)

    def sample(self, name: str, size_bytes: int) -> bytes:
        """Checkpoint: the first bytes of a tensor as they are stored."""
        tensor = self._header.tensors[self._gguf(name)]
        return bytes(self._file.read(tensor.offset, min(size_bytes, tensor_bytes(tensor, self._sizes))))

    def _config(self) -> Mapping[str, Any]:
        """The metadata in the layout of HF's config.json."""
        data = self._header.metadata
        arch = data.get("general.architecture")
        if arch != "llama":
            raise UnsupportedModel(f"{self.source} holds a model of architecture {arch!r}; from GGUF, llama is read")
        embedding = self.tensors.get("model.embed_tokens.weight")
        if embedding is None or len(embedding.shape) != 2:
            raise CheckpointError(f"{self.source} has no token embedding of [tokens, hidden size]")
        vocab, hidden = embedding.shape
        config = {
            "model_type": "llama",
            "hidden_size": hidden,
            "vocab_size": vocab,
            "num_hidden_layers": data.get("llama.block_count"),
            "num_attention_heads": data.get("llama.attention.head_count"),
            "num_key_value_heads": data.get("llama.attention.head_count_kv", data.get("llama.attention.head_count")),
            "head_dim": data.get("llama.attention.key_length", data.get("llama.rope.dimension_count")),
            "intermediate_size": data.get("llama.feed_forward_length"),
            "rms_norm_eps": data.get("llama.attention.layer_norm_rms_epsilon"),
            "max_position_embeddings": data.get("llama.context_length"),
            "hidden_act": "silu",
            "tie_word_embeddings": "lm_head.weight" not in self.tensors,
            "attention_bias": "model.layers.0.self_attn.q_proj.bias" in self.tensors,
            "mlp_bias": "model.layers.0.mlp.down_proj.bias" in self.tensors,
            "bos_token_id": data.get("tokenizer.ggml.bos_token_id"),
            "eos_token_id": data.get("tokenizer.ggml.eos_token_id"),
            "rope_parameters": self._rope(),
        }
        return {key: value for key, value in config.items() if value is not None}

    def _rope(self) -> dict[str, Any]:
        data = self._header.metadata
        rope: dict[str, Any] = {"rope_type": "default", "rope_theta": data.get("llama.rope.freq_base", 10_000.0)}
        if _ROPE_FACTORS in self._header.tensors:
            # Llama 3.1's scaling, worked out per frequency by whoever wrote the file.
            rope["factors"] = self._read(_ROPE_FACTORS).tolist()
        elif data.get("llama.rope.scaling.type") not in (None, "none"):
            rope["rope_type"] = data["llama.rope.scaling.type"]
            rope["factor"] = data.get("llama.rope.scaling.factor", 1.0)
        return rope


def _unpermuted(tensor: Tensor, heads: int) -> Tensor:
    """Undo the reordering that GGUF's Llama has: pairs of a head's dimensions next to each other become two halves."""
    pairs = tensor.view(heads, tensor.shape[0] // heads // 2, 2, *tensor.shape[1:])
    return pairs.transpose(1, 2).reshape(tensor.shape)
