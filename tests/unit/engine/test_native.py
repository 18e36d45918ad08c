"""Which blocks the compiled kernels take: those whose every field they know."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import torch

from shoal.engine.native import MAX_HEAD_DIM, RESOLVED, STRUCTURE, NativeBlock, supports
from shoal.engine.native_proof import canned
from shoal.model.kernels import cpu
from shoal.model.nn.block import BlockConfig
from shoal.model.nn.block_weights import BlockWeights
from shoal.model.nn.mla import LatentConfig
from shoal.model.nn.moe import MoeConfig
from shoal.model.nn.rope import RopeConfig
from tests.kernels.natively import needs_kernels

LLAMA = BlockConfig(48, 4, 2, 12, 100, 1e-5, RopeConfig())
NUMBERS = frozenset({"norm_eps", "attn_softcap", "query_scale", "window", "activation", "angles", "rotary_dim"})
"""Among what the kernels of this version take."""

UNKNOWN = {field.name for field in msgspec.structs.fields(BlockConfig)} - STRUCTURE - NUMBERS
STRUCTS = {"moe": MoeConfig(4, 2, 32), "latent": LatentConfig(0, 8, 8, 4, 8)}
GROWN = msgspec.defstruct("Grown", [("of_tomorrow", float, 1.0)], bases=(BlockConfig,), frozen=True)


def other(name: str, value: Any) -> Any:
    """A value that a field does not have."""
    if name in STRUCTS:
        return STRUCTS[name]
    return not value if isinstance(value, bool) else f"not {value}" if isinstance(value, str) else value + 1


def test_llama_is_taken() -> None:
    """And what the kernels know beside it."""
    assert supports(LLAMA, NUMBERS)
    gemma = {"activation": "gelu_pytorch_tanh", "post_norms": True, "qk_norm": "head", "window": 9, "attn_softcap": 5.0}
    more = {"query_scale": 0.3, "rotary_dim": 6, "sinks": True, "pre_norms": False}
    assert supports(msgspec.structs.replace(LLAMA, **gemma, **more), NUMBERS)


@pytest.mark.parametrize("name", sorted(UNKNOWN))
def test_a_field_that_the_kernels_do_not_know_has_to_be_llamas(name: str) -> None:
    """Whatever it does, they would leave it out."""
    assert not supports(msgspec.structs.replace(LLAMA, **{name: other(name, getattr(LLAMA, name))}), NUMBERS)


def test_a_field_of_tomorrow_is_refused_until_the_kernels_say_that_they_take_it() -> None:
    """A new word in the block means plain torch, and so do kernels that ask for a number that no block has."""
    fields = msgspec.structs.asdict(LLAMA)
    assert supports(GROWN(**fields), NUMBERS)
    assert not supports(GROWN(**fields, of_tomorrow=0.5), NUMBERS)
    assert supports(GROWN(**fields, of_tomorrow=0.5), NUMBERS | {"of_tomorrow"})
    assert not supports(LLAMA, NUMBERS | {"of_tomorrow"})


@pytest.mark.parametrize(
    "fields",
    [{"activation": "gelu"}, {"qk_norm": "full"}, {"head_dim": MAX_HEAD_DIM + 2}],
    ids=lambda one: next(iter(one)),
)
def test_values_that_the_kernels_do_not_know(fields: dict[str, Any]) -> None:
    """Of fields that they do know."""
    assert not supports(msgspec.structs.replace(LLAMA, **fields), NUMBERS)


@needs_kernels
def test_a_block_is_filled_as_its_configuration_says() -> None:
    """Each number of the struct, those that are worked out as well, and a vector for each that the weights have."""
    assert cpu.block_numbers() >= NUMBERS > RESOLVED.keys()
    config = msgspec.structs.replace(LLAMA, window=40, attn_softcap=5.0, activation="gelu_pytorch_tanh", sinks=True)
    block = NativeBlock(config, canned(config))
    found = {name: getattr(block.struct, name) for name in sorted(NUMBERS)}
    expected = {"activation": 1, "angles": 0, "attn_softcap": 5.0, "rotary_dim": 12, "window": 40}
    assert found == pytest.approx({**expected, "norm_eps": 1e-5, "query_scale": 12**-0.5})
    there = {name for name, kind in cpu.block_fields().items() if kind == "vector" and getattr(block.struct, name)}
    assert there == {"attention_norm", "mlp_norm", "sinks"}
    assert block.struct.qkv.n == 96


@needs_kernels
@pytest.mark.parametrize("role", ["k_up.weight", "memory", "third_norm.weight"])
def test_a_weight_without_a_place_is_refused(role: str) -> None:
    """It would be left out of the product otherwise."""
    weights = canned(LLAMA)
    more = {role: torch.ones(48, 48) if role == "k_up.weight" else torch.ones(48)}
    grown = BlockWeights.of({**weights.matrices, **weights.vectors, **more})
    with pytest.raises(ValueError, match=f"no place for {role}"):
        NativeBlock(LLAMA, grown)
