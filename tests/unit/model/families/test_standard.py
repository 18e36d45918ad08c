"""What most families share."""

from __future__ import annotations

from typing import Any

import pytest

from shoal.errors import CheckpointError
from shoal.model.families import TensorSource, standard
from shoal.model.nn.block import BlockConfig, StoredTensors
from shoal.model.nn.rope import RopeConfig
from tests.unit.model.families.configurations import SMALL, model

BLOCK = BlockConfig(64, 4, 2, 16, 96, 1e-5, RopeConfig())
HF: dict[str, Any] = {"model_type": "llama", **SMALL}


def test_what_a_family_states_goes_before_what_is_read() -> None:
    """Its own rope, activation or ε; nothing that it states is looked for in the file."""
    block = standard.block_config({**HF, "hidden_act": "unheard of"}, activation="gelu", norm_eps=0.5)
    assert (block.activation, block.norm_eps) == ("gelu", 0.5)
    assert standard.model_config(HF, BLOCK, tied_head=True).tied_head


def test_heads_that_do_not_divide() -> None:
    """Queries over keys, and a head into pairs."""
    for heads in ((4, 3, 16), (4, 2, 15)):
        with pytest.raises(CheckpointError, match="do not divide"):
            standard.check_heads(*heads)
    standard.check_heads(4, 2, 16)


def test_dynamic_scaling_reaches_beyond_what_was_trained() -> None:
    """Other kinds of rope end where the file says."""
    for kind, most in (("default", 100), ("dynamic", 250), ("linear", 100)):
        scaling = {"type": kind, "factor": 2.5}
        assert model("llama", max_position_embeddings=100, rope_scaling=scaling).max_positions == most


def test_blocks_that_differ_are_told_by_number() -> None:
    """Kinds in the order in which they come; those that do not come are left out."""
    kinds = {"a": BLOCK, "b": standard.block_config(HF, window=3), "c": standard.block_config(HF, window=4)}
    found = standard.differing(kinds, ("c", "a", "c"))
    assert found == {"block_kinds": (kinds["c"], kinds["a"]), "layer_types": (0, 1, 0)}


def test_roles_of_an_mlp_within_something_else() -> None:
    """Names, roles and a width of its own, with biases."""
    found = standard.mlp_tensors(BLOCK, "x.shared.", True, "shared.", 40)
    assert found["shared.down.weight"] == TensorSource("x.shared.down_proj.weight", (64, 40))
    assert found["shared.gate.bias"] == TensorSource("x.shared.gate_proj.bias", (40,))


def test_biases_of_attention_are_asked_for_apart() -> None:
    """Of q, k and v, and of o."""
    found = standard.attention_tensors(BLOCK, "x.", StoredTensors(output_bias=True))
    assert {role for role in found if role.endswith("bias")} == {"o.bias"}
    found = standard.attention_tensors(BLOCK, "x.", StoredTensors(attention_bias=True))
    assert {role for role in found if role.endswith("bias")} == {"q.bias", "k.bias", "v.bias"}
