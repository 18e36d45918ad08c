"""Blocks and ends from checkpoints: only what is asked for, checked before it is used."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from shoal.client.remote_model import head_form
from shoal.engine.backends import choose_linears
from shoal.errors import CheckpointError, SpanError, UsageError
from shoal.model.families import family, model_config
from shoal.model.weights.block_loading import block_digests, load_blocks, load_ends, weight_format
from shoal.model.weights.checkpoint import Checkpoint, TensorInfo
from shoal.model.weights.model_source import open_checkpoint
from shoal.model.weights.quantization_note import NO_NOTE
from shoal.types import Span
from tests.support.family_cases import CASES, save_checkpoint
from tests.support.tiny_models import tiny_llama

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": 50,
    "attention_bias": True,
    "tie_word_embeddings": False,
}

MOE: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 12, "num_experts": 4}
FEATURES: dict[str, dict[str, Any]] = {
    "gemma3_text": {"head_dim": 8},
    "gpt_oss": {"num_local_experts": 3, "num_experts_per_tok": 2, "num_key_value_heads": 2},
    "qwen3_moe": MOE,
    "mixtral": {"num_local_experts": 3, "num_key_value_heads": 2},
    "phi3": {},
    "olmo2": {},
    "glm4": {},
    "bloom": {"n_layer": 2, "n_head": 4, "tie_word_embeddings": True},
    "falcon": {"bias": True, "new_decoder_architecture": True, "num_kv_heads": 2},
    "deepseek_v3": {
        **MOE,
        "n_routed_experts": 4,
        "n_group": 2,
        "topk_group": 1,
        "q_lora_rank": 10,
        "kv_lora_rank": 12,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 4,
        "v_head_dim": 6,
    },
}


class Memory:
    """A checkpoint that is a dictionary and remembers what was read."""

    source = "memory"
    name = "memory"
    revision = ""
    note = NO_NOTE
    bytes_read = 0

    def __init__(self, **changes: Any) -> None:
        self.config: Mapping[str, Any] = {**CONFIG, **changes}
        config, generator = model_config(self.config), torch.Generator().manual_seed(3)
        described = family(config.model_type)
        shapes = [
            *(described.block_tensors(config, index) for index in range(config.num_blocks)),
            described.end_tensors(config),
        ]
        self.held: dict[str, Tensor] = {
            one.name: torch.randn(one.shape, generator=generator) for part in shapes for one in part.values()
        }
        self.asked: list[str] = []

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """As the headers would say."""
        return {name: TensorInfo(str(tensor.dtype), tuple(tensor.shape)) for name, tensor in self.held.items()}

    def read(self, name: str) -> Tensor:
        """One tensor."""
        self.asked.append(name)
        return self.held[name]

    def sample(self, name: str, size_bytes: int) -> bytes:
        """Nothing."""
        return b""


@pytest.fixture
def checkpoint() -> Memory:
    """Three blocks and two ends."""
    return Memory()


def config_of(checkpoint: Checkpoint) -> Any:
    """Its shape."""
    return model_config(checkpoint.config)


def test_a_span_reads_its_own_blocks_only(checkpoint: Memory) -> None:
    """Every tensor of blocks 1 and 2 once, nothing else, with progress for each block."""
    heard: list[tuple[int, int]] = []
    config = config_of(checkpoint)
    blocks = load_blocks(checkpoint, config, Span(1, 3), progress=lambda done, total: heard.append((done, total)))
    assert len(blocks) == 2
    assert heard == [(1, 2), (2, 2)]
    expected = [name for name in checkpoint.held if name.startswith(("model.layers.1.", "model.layers.2."))]
    assert sorted(checkpoint.asked) == sorted(expected)


def test_the_ends_read_no_block(checkpoint: Memory) -> None:
    """Embedding, norm and head; without the head where it is tied."""
    ends = load_ends(checkpoint, config_of(checkpoint))
    assert sorted(checkpoint.asked) == ["lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"]
    assert torch.equal(ends.embed([3, 3, 0]), checkpoint.held["model.embed_tokens.weight"][[3, 3, 0]])
    tied = Memory(tie_word_embeddings=True)
    ends = load_ends(tied, config_of(tied))
    assert sorted(tied.asked) == ["model.embed_tokens.weight", "model.norm.weight"]
    assert ends.logits(torch.ones(2, 32), 4).shape == (2, 50)


@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "model.layers.1.self_attn.q_proj.bias"])
def test_a_tensor_that_is_missing_or_wrong_is_named(checkpoint: Memory, name: str) -> None:
    """Missing, of another shape, or not of floats: the error says which, and no block was read for it."""
    right, config = checkpoint.held.pop(name), config_of(checkpoint)
    with pytest.raises(CheckpointError, match=f"no tensor {name}"):
        load_blocks(checkpoint, config, Span(1, 2))
    checkpoint.held[name] = right[:-1]
    with pytest.raises(CheckpointError, match=f"{name} has shape"):
        load_blocks(checkpoint, config, Span(1, 2))
    assert not checkpoint.asked
    checkpoint.held[name] = right.to(torch.int8)
    with pytest.raises(CheckpointError, match=f"{name} holds torch.int8"):
        load_blocks(checkpoint, config, Span(1, 2))


def test_spans_and_dtypes_are_checked(checkpoint: Memory) -> None:
    """Blocks beyond the model and dtypes that are none."""
    config = config_of(checkpoint)
    with pytest.raises(SpanError):
        load_blocks(checkpoint, config, Span(2, 4))
    with pytest.raises(UsageError, match="float8"):
        load_blocks(checkpoint, config, Span(0, 1), "float8")


def test_the_digest_is_of_the_weights_as_used(checkpoint: Memory) -> None:
    """Equal for equal weights; another for other blocks, one changed number of any tensor, or another dtype."""
    config = config_of(checkpoint)
    digest = block_digests(load_blocks(checkpoint, config, Span(0, 2)))
    assert digest == block_digests(load_blocks(checkpoint, config, Span(0, 2)))
    others = {digest, block_digests(load_blocks(checkpoint, config, Span(1, 3)))}
    others.add(block_digests(load_blocks(checkpoint, config, Span(0, 2), "bfloat16")))
    changed = [name for name in checkpoint.held if name.startswith("model.layers.1.")]
    for name in changed:
        tensor = checkpoint.held[name]
        checkpoint.held[name] = tensor.clone()
        checkpoint.held[name].view(-1)[-1] += 1.0
        others.add(block_digests(load_blocks(checkpoint, config, Span(0, 2))))
        checkpoint.held[name] = tensor
    assert len(others) == 3 + len(changed)


@pytest.mark.parametrize("model_type", FEATURES)
def test_the_digest_covers_every_tensor_of_every_family(model_type: str) -> None:
    """One changed number of any tensor of a block changes its digest, whatever the tensor is for."""
    checkpoint = Memory(model_type=model_type, **FEATURES[model_type])
    config = config_of(checkpoint)
    index = config.num_blocks - 1
    shapes = family(model_type).block_tensors(config, index)
    names = sorted({stored.name for stored in shapes.values()})
    known = {block_digests(load_blocks(checkpoint, config, Span(index, index + 1)))}
    for name in names:
        tensor = checkpoint.held[name]
        checkpoint.held[name] = tensor.clone()
        checkpoint.held[name].view(-1)[-1] += 1.0
        known.add(block_digests(load_blocks(checkpoint, config, Span(index, index + 1))))
        checkpoint.held[name] = tensor
    assert len(known) == 1 + len(names)


def test_a_mixtral_server_reads_its_blocks_only(tmp_path: Path) -> None:
    """Counted in bytes: with four of six blocks held, the headers and the tensors of these four, experts included."""
    case = next(case for case in CASES if case.model_type == "mixtral")
    wide = case._replace(fields={**case.fields, "num_hidden_layers": 6, "num_local_experts": 8})
    checkpoint = open_checkpoint(str(save_checkpoint(wide, tmp_path)))
    headers = checkpoint.bytes_read
    span, config = Span(1, 5), config_of(checkpoint)
    load_blocks(checkpoint, config, span)
    held = tuple(f"model.layers.{index}." for index in span.blocks())
    expected = [info for name, info in checkpoint.tensors.items() if name.startswith(held)]
    assert len(expected) == 4 * (2 + 4 + 1 + 3 * 8)
    assert checkpoint.bytes_read - headers == sum(4 * math.prod(info.shape) for info in expected)


def test_a_prefix_that_the_files_lack(tmp_path: Path) -> None:
    """BLOOM's own files leave out "transformer.", which is what transformers puts before the names when it saves."""
    whole = open_checkpoint(str(save_checkpoint(next(c for c in CASES if c.model_type == "bloom"), tmp_path)))
    bare = Memory(**whole.config)
    bare.held = {name.removeprefix("transformer."): whole.read(name) for name in whole.tensors}
    config = config_of(whole)
    assert block_digests(load_blocks(bare, config, Span(1, 3))) == block_digests(load_blocks(whole, config, Span(1, 3)))


@pytest.mark.parametrize("head", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("tied", [True, False])
def test_no_tokens_have_no_rows(tied: bool, head: str) -> None:
    """Whatever form the head has that they would be taken from."""
    held, form = Memory(tie_word_embeddings=tied), head_form(head)
    ends = load_ends(held, config_of(held), form, choose_linears(form))
    assert ends.embed([]).shape == (0, 32)
    assert ends.embed([1, 2]).shape == (2, 32)


def test_an_unknown_token_is_a_mistake(checkpoint: Memory) -> None:
    """Token ids outside the vocabulary never wrap around."""
    ends = load_ends(checkpoint, config_of(checkpoint))
    for token in (-1, 50, 63):
        with pytest.raises(UsageError, match="vocabulary"):
            ends.embed([1, token])


def test_auto_keeps_what_the_checkpoint_has(tmp_path: Path) -> None:
    """A checkpoint in bf16 is kept in bf16, any other in fp32; a wish comes first, and codes of 7 bits are refused."""
    wide = open_checkpoint(str(tiny_llama(tmp_path / "wide")))
    halved = tmp_path / "halved"
    tiny_llama(halved)
    tensors = load_file(halved / "model.safetensors")
    save_file({name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()}, halved / "model.safetensors")
    narrow = open_checkpoint(str(halved))
    assert weight_format("auto", None, wide).dtype == torch.float32
    assert weight_format("auto", None, narrow).dtype == torch.bfloat16
    assert weight_format("float32", None, narrow).dtype == torch.float32
    assert weight_format("auto", 4, narrow).bits_per_weight == 4.0625
    with pytest.raises(UsageError, match="7 bits"):
        weight_format("auto", 7, narrow)
