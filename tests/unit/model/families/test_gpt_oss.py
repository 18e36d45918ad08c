"""gpt-oss: stacked experts whose gate and up alternate, sinks, windows."""

from __future__ import annotations

import pytest
import torch

from shoal.errors import UnsupportedModel
from shoal.model.families.gguf_mapping import GgufFields
from shoal.model.families.gpt_oss import GGUF, gguf_fields, gguf_piece
from tests.unit.model.families.configurations import GgufMemory, counted, model, taken, tensors

EXPERTS = {"num_local_experts": 3, "num_experts_per_tok": 2}
PREFIX = "model.layers.0.mlp.experts."


def test_experts_are_parts_of_stacked_tensors() -> None:
    """Gate and up alternate in the outputs; matrices lie as [in, out]."""
    found = tensors(model("gpt_oss", **EXPERTS))
    stored = counted(3, 64, 192)
    assert torch.equal(taken(found["experts.1.gate.weight"], stored), stored[1].T[0::2])
    assert torch.equal(taken(found["experts.1.up.weight"], stored), stored[1].T[1::2])
    assert torch.equal(taken(found["experts.2.up.bias"], counted(3, 192)), counted(3, 192)[2, 1::2])
    down = counted(3, 96, 64)
    assert torch.equal(taken(found["experts.0.down.weight"], down), down[0].T)
    assert found["sinks"].shape == (4,)
    assert "router.bias" in found


def test_every_other_block_has_a_window() -> None:
    """And all of them sinks and bounded experts."""
    config = model("gpt_oss", **EXPERTS)
    assert [config.block_config(index).window for index in range(4)] == [128, 0, 128, 0]
    assert all(one.sinks and one.mlp_limit == 7.0 and one.activation == "quick_gelu" for one in config.distinct_blocks)
    with pytest.raises(UnsupportedModel, match="swiglu_alpha"):
        model("gpt_oss", **EXPERTS, swiglu_alpha=1.5)


def test_gate_and_up_are_put_together_from_gguf() -> None:
    """What the converter took apart alternates again, inputs first."""
    gate, up, down = counted(3, 96, 64), -counted(3, 96, 64), counted(3, 64, 96)
    names = {"gate": gate, "up": up, "down": down}
    file = GgufMemory("gpt-oss", {f"blk.0.ffn_{part}_exps.weight": tensor for part, tensor in names.items()})
    piece = gguf_piece(file, PREFIX + "gate_up_proj")
    assert piece is not None
    assert piece.restore is not None
    joined = piece.restore([file.read(name) for name in piece.names])
    assert torch.equal(joined[:, :, 0::2], gate.transpose(1, 2))
    assert torch.equal(joined[:, :, 1::2], up.transpose(1, 2))
    piece = gguf_piece(file, PREFIX + "down_proj")
    assert piece is not None
    assert piece.restore is not None
    assert torch.equal(piece.restore([down]), down.transpose(1, 2))
    assert gguf_piece(file, PREFIX + "down_proj_bias") is None
    assert gguf_piece(file, "model.norm.weight") is None
    assert GGUF.find(file, {}, "model.layers.2.self_attn.sinks") == (("blk.2.attn_sinks.weight",), None, None)


def test_gguf_states_the_experts_width() -> None:
    """And its yarn is not cut off."""
    fields = gguf_fields(GgufFields(GgufMemory("gpt-oss", expert_feed_forward_length=96), "gpt-oss"))
    assert fields["intermediate_size"] == 96
    assert fields["rope_parameters"]["truncate"] is False
