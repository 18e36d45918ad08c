"""GGUF checkpoints: Llama's names and the order of its heads."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize

from shoal.errors import ModelNotFound, UnsupportedModel
from shoal.model.families import gguf_architectures, model_config
from shoal.model.weights.model_source import demo_model_path, open_checkpoint

HIDDEN, HEADS, KV_HEADS, INNER, VOCAB = 64, 4, 2, 96, 20


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """The order in which GGUF's Llama keeps the rows of q and k."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def write(path: Path, tensors: dict[str, np.ndarray], architecture: str = "llama", **fields: float) -> None:
    """A small Llama."""
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_name("Tiny")
    writer.add_block_count(1)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(fields.get("theta", 5000.0))
    writer.add_eos_token_id(2)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def weights() -> dict[str, np.ndarray]:
    """Random weights in HF's order, by their GGUF names."""
    random = np.random.default_rng(0)
    shapes = {
        "token_embd": (VOCAB, HIDDEN),
        "output_norm": (HIDDEN,),
        "blk.0.attn_q": (HIDDEN, HIDDEN),
        "blk.0.attn_k": (HIDDEN // 2, HIDDEN),
        "blk.0.attn_v": (HIDDEN // 2, HIDDEN),
        "blk.0.attn_output": (HIDDEN, HIDDEN),
        "blk.0.attn_norm": (HIDDEN,),
        "blk.0.ffn_norm": (HIDDEN,),
        "blk.0.ffn_gate": (INNER, HIDDEN),
        "blk.0.ffn_up": (INNER, HIDDEN),
        "blk.0.ffn_down": (HIDDEN, INNER),
    }
    return {f"{name}.weight": random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def test_tensors_come_out_in_the_layout_of_transformers(tmp_path: Path) -> None:
    """Names are HF's and the rows of q and k are put back in order; the configuration is complete."""
    original = weights()
    stored = dict(original)
    stored["blk.0.attn_q.weight"] = permuted(original["blk.0.attn_q.weight"], HEADS)
    stored["blk.0.attn_k.weight"] = permuted(original["blk.0.attn_k.weight"], KV_HEADS)
    write(tmp_path / "tiny.gguf", stored)
    checkpoint = open_checkpoint(str(tmp_path / "tiny.gguf"))
    names = {
        "attn_q.weight": "self_attn.q_proj.weight",
        "attn_k.weight": "self_attn.k_proj.weight",
        "attn_output.weight": "self_attn.o_proj.weight",
        "ffn_norm.weight": "post_attention_layernorm.weight",
        "ffn_down.weight": "mlp.down_proj.weight",
    }
    for theirs, ours in names.items():
        assert torch.equal(checkpoint.read(f"model.layers.0.{ours}"), torch.from_numpy(original[f"blk.0.{theirs}"]))
    assert len(checkpoint.tensors) == len(original)
    config = model_config(checkpoint.config)
    assert checkpoint.name == "Tiny"
    assert (config.num_blocks, config.vocab_size, config.max_positions) == (1, VOCAB, 128)
    assert (config.block.num_kv_heads, config.block.head_dim, config.block.rope.theta) == (KV_HEADS, 16, 5000.0)
    assert config.tied_head
    assert config.eos_token_ids == (2,)


def test_rope_factors_of_the_file_are_used(tmp_path: Path) -> None:
    """Llama 3.1's scaling is a tensor in GGUF."""
    factors = np.linspace(1, 8, 8, dtype=np.float32)
    write(tmp_path / "tiny.gguf", {**weights(), "rope_freqs.weight": factors})
    rope = model_config(open_checkpoint(str(tmp_path / "tiny.gguf")).config).block.rope
    assert rope.factors == tuple(factors.tolist())


def test_other_architectures_are_named(tmp_path: Path) -> None:
    """The error says what the file holds and what is read."""
    write(tmp_path / "other.gguf", weights(), architecture="mamba")
    with pytest.raises(UnsupportedModel, match="mamba") as caught:
        open_checkpoint(str(tmp_path / "other.gguf"))
    assert all(name in str(caught.value) for name in gguf_architectures())


def test_the_real_file_is_read_by_part() -> None:
    """A block of SmolLM2 costs its bytes and the header, and equals the gguf package's own reading."""
    try:
        path = demo_model_path()
    except ModelNotFound:
        pytest.skip("the demo's model is not installed")
    checkpoint = open_checkpoint(str(path))
    header = checkpoint.bytes_read
    assert header < 8 << 20
    read = checkpoint.read("model.layers.7.mlp.down_proj.weight")
    tensor = next(one for one in gguf.GGUFReader(path).tensors if one.name == "blk.7.ffn_down.weight")
    assert checkpoint.bytes_read - header == tensor.n_bytes
    assert np.array_equal(read.numpy(), dequantize(tensor.data, tensor.tensor_type))
