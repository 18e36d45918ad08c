"""What a family says about GGUF files: their architecture's name, their metadata as HF's configuration, their tensors as HF's.

Tensor names are the `gguf` package's tables. What its converters reorder is described in llama.cpp's convert_hf_to_gguf.py.
`weights.gguf` reads the container and applies what stands here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from shoal.errors import CheckpointError
from shoal.model.families.fields import Config, token_ids

Restore = Callable[[Sequence[Tensor]], Tensor]
"""One of HF's tensors from the file's tensors that it is made of."""

NEEDED = ("block_count", "context_length", "attention.head_count", "attention.layer_norm_rms_epsilon")
"""Fields that no file of most architectures does without. Other numbers are checked by the sizes of its tensors."""

_NEEDED_FIRST = ("block_count", "attention.head_count")
NEEDED_OF_LAYER_NORMS = (*NEEDED[:3], "attention.layer_norm_epsilon")

_EXPERT = re.compile(r"\.experts\.(\d+)\.")
_BLOCK = re.compile(r"\.(?:layers|h)\.(\d+)\.")


class GgufContents(Protocol):
    """A GGUF file: metadata, and tensors under their own names."""

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Every field by its whole name."""
        ...

    @property
    def name(self) -> str:
        """What to call it in errors."""
        ...

    def __contains__(self, name: str) -> bool: ...

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, slowest dimension first; raises CheckpointError for a name that is not there."""
        ...

    def read(self, name: str, index: int | None = None) -> Tensor:
        """A tensor in fp32, or one along its slowest dimension."""
        ...


class GgufPiece(NamedTuple):
    """One of HF's tensors: the file's tensors that it is made of, which of a stack, and how (None: it is the first)."""

    names: tuple[str, ...]
    expert: int | None = None
    restore: Restore | None = None


class GgufFields:
    """A file's metadata under its architecture's prefix."""

    def __init__(self, file: GgufContents, architecture: str) -> None:
        self.file = file
        self._prefix = architecture

    def get(self, key: str, default: Any = None) -> Any:
        """The field `architecture.key`."""
        return self.file.metadata.get(f"{self._prefix}.{key}", default)


def gguf_config(fields: GgufFields) -> dict[str, Any]:
    """The fields of HF's config.json that all architectures have; raises CheckpointError without an embedding."""
    file = fields.file
    if "token_embd.weight" not in file or len(file.shape("token_embd.weight")) != 2:
        raise CheckpointError(f"{file.name} has no token embedding of [tokens, hidden size]")
    vocab, hidden = file.shape("token_embd.weight")
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
        "eos_token_id": _end_tokens(file),
        "rope_parameters": _rope(fields),
    }


def _end_tokens(file: GgufContents) -> int | list[int] | None:
    """The ends of a text, of a turn and of a message that waits for a tool's answer, as config.json has them."""
    given = [file.metadata.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("eos", "eot", "eom")]
    ids = list(dict.fromkeys(token_ids([one for one in given if one is not None])))
    return ids if len(ids) > 1 else ids[0] if ids else None


def _rope(fields: GgufFields) -> dict[str, Any]:
    file, kind = fields.file, fields.get("rope.scaling.type")
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": fields.get("rope.freq_base", 10_000.0)}
    if kind is None and fields.get("rope.scaling.factor") is not None:
        raise CheckpointError(f"{file.name} says how far its rope is stretched and not in which way")
    if "rope_freqs.weight" in file:
        # Llama 3.1's scaling, worked out per frequency by the file's writer.
        rope["factors"] = file.read("rope_freqs.weight").tolist()
    elif "rope_factors_long.weight" in file:
        rope["rope_type"] = "longrope"
        rope["short_factor"] = file.read("rope_factors_short.weight").tolist()
        rope["long_factor"] = file.read("rope_factors_long.weight").tolist()
        rope["attention_factor"] = fields.get("rope.scaling.attn_factor")
    elif kind not in (None, "none"):
        rope["rope_type"] = kind
        said = {
            "factor": fields.get("rope.scaling.factor"),
            "beta_fast": fields.get("rope.scaling.yarn_beta_fast"),
            "beta_slow": fields.get("rope.scaling.yarn_beta_slow"),
        }
        rope |= {key: value for key, value in said.items() if value is not None}
    if fields.get("rope.scaling.original_context_length") is not None:
        rope["original_max_position_embeddings"] = fields.get("rope.scaling.original_context_length")
    return rope


def partly_turning(fields: GgufFields) -> dict[str, Any]:
    """`gguf_config` where a part of each head turns."""
    config = gguf_config(fields)
    heads = config["num_attention_heads"]
    if config["head_dim"] is None and isinstance(heads, int) and heads > 0:
        config["head_dim"] = config["hidden_size"] // heads
    turning = fields.get("rope.dimension_count")
    if isinstance(turning, int) and isinstance(config["head_dim"], int) and config["head_dim"] > 0:
        config["partial_rotary_factor"] = turning / config["head_dim"]
    return config


def paired_heads(name: str, config: Config) -> Restore | None:
    """In the architecture "llama" the dimensions of q and k that turn together are neighbours; in HF's they are two halves."""
    for part, field in (("self_attn.q_proj", "num_attention_heads"), ("self_attn.k_proj", "num_key_value_heads")):
        if part in name:
            return _unpaired(config[field])
    return None


def _unpaired(heads: int) -> Restore:
    def restore(parts: Sequence[Tensor]) -> Tensor:
        (tensor,) = parts
        pairs = tensor.view(heads, tensor.shape[0] // heads // 2, 2, *tensor.shape[1:])
        return pairs.transpose(1, 2).reshape(tensor.shape)

    return restore


def shifted_norms(name: str, config: Config) -> Restore | None:
    """Gemma's norms are stored as 1 + w."""
    return (lambda parts: parts[0] - 1.0) if name.endswith("norm.weight") else None


def fused_by_kind(name: str, config: Config) -> Restore | None:
    """q, k and v of all heads one after the other (`query_key_value`) become those of each group of heads."""
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


class GgufMapping(NamedTuple):
    """GGUF's architecture that holds a family's models, and what is special about it.

    `config` gives HF's fields; `restore(name, config)` what makes one of HF's tensors of the file's (None: it is the same);
    `piece(file, name)` finds tensors that the table of names does not have. Where several families share an architecture,
    `claims` tells their files apart. `needed` are fields that nothing else can tell.
    """

    architecture: str
    config: Callable[[GgufFields], dict[str, Any]] = gguf_config
    restore: Callable[[str, Config], Restore | None] = lambda name, config: None
    piece: Callable[[GgufContents, str], GgufPiece | None] = lambda file, name: None
    claims: Callable[[GgufFields], bool] = lambda fields: True
    needed: tuple[str, ...] = NEEDED

    def hf_config(self, file: GgufContents) -> dict[str, Any]:
        """HF's fields, without those that the file leaves out; raises CheckpointError where tensors cannot be found then."""
        self.check(file, _NEEDED_FIRST)
        fields = self.config(GgufFields(file, self.architecture))
        return {key: value for key, value in fields.items() if value is not None}

    def check(self, file: GgufContents, keys: Sequence[str] = ()) -> None:
        """Raise CheckpointError where the file leaves out one of these fields, or any that nothing else tells."""
        fields = GgufFields(file, self.architecture)
        for key in keys or self.needed:
            if fields.get(key) is None:
                raise CheckpointError(f"{file.name} does not say its {self.architecture}.{key}")

    def find(self, file: GgufContents, config: Config, name: str) -> GgufPiece | None:
        """Where HF's tensor `name` is in a file; None where it is missing. Raises CheckpointError for too small a stack."""
        if (found := self.piece(file, name)) is not None:
            return found
        expert = _EXPERT.search(name)
        held = gguf_name(self.architecture, _EXPERT.sub(".experts.", name))
        if held is None or held not in file:
            return None
        if expert is None:
            return GgufPiece((held,), None, self.restore(name, config))
        stack = file.shape(held)
        if len(stack) != 3 or int(expert[1]) >= stack[0]:
            raise CheckpointError(f"{file.name}: {held} of shape {list(stack)} has no expert {expert[1]}")
        return GgufPiece((held,), int(expert[1]))


_TABLES: dict[str, Any] = {}


def gguf_name(architecture: str, name: str) -> str | None:
    """The GGUF name of one of HF's tensors, by the `gguf` package's table for block 0; None where it has none."""
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
