"""Phi 3's fused tensors."""

from __future__ import annotations

import torch

from shoal.model.families.gguf_mapping import GgufFields
from shoal.model.families.phi3 import GGUF
from tests.unit.model.families.configurations import GgufMemory, counted, model, taken, tensors


def test_q_k_and_v_are_one_tensor() -> None:
    """One after the other, each as wide as its heads."""
    found, stored = tensors(model("phi3", sliding_window=None)), counted(64 + 32 + 32, 64)
    parts = [taken(found[f"{role}.weight"], stored) for role in "qkv"]
    assert [part.shape[0] for part in parts] == [64, 32, 32]
    assert torch.equal(torch.cat(parts), stored)
    assert {found[f"{role}.weight"].name for role in "qkv"} == {"model.layers.0.self_attn.qkv_proj.weight"}


def test_gate_and_up_are_another() -> None:
    """The gate first."""
    found, stored = tensors(model("phi3"), 3), counted(192, 64)
    assert torch.equal(taken(found["gate.weight"], stored), stored[:96])
    assert torch.equal(taken(found["up.weight"], stored), stored[96:])
    assert found["up.weight"].name == "model.layers.3.mlp.gate_up_proj.weight"


def test_a_part_of_each_head_may_turn() -> None:
    """Phi 4 mini's share, from config.json and from GGUF's number of dimensions."""
    block = model("phi3", partial_rotary_factor=0.75, sliding_window=60).block
    assert (block.rotary_dim, block.window) == (12, 60)
    file = GgufMemory("phi3", attention__head_count=4, rope__dimension_count=12)
    assert GGUF.config(GgufFields(file, "phi3"))["partial_rotary_factor"] == 0.75
