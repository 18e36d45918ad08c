"""Which blocks the compiled kernels take: those whose every field they know."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from shoal.engine.native import KNOWN_FIELDS, MAX_HEAD_DIM, supports
from shoal.model.nn.block import BlockConfig
from shoal.model.nn.mla import LatentConfig
from shoal.model.nn.moe import MoeConfig
from shoal.model.nn.rope import RopeConfig

LLAMA = BlockConfig(48, 4, 2, 12, 100, 1e-5, RopeConfig())
UNKNOWN = [field.name for field in msgspec.structs.fields(BlockConfig) if field.name not in KNOWN_FIELDS]
STRUCTS = {"moe": MoeConfig(4, 2, 32), "latent": LatentConfig(0, 8, 8, 4, 8)}


def other(name: str, value: Any) -> Any:
    """A value that a field does not have."""
    if name in STRUCTS:
        return STRUCTS[name]
    return not value if isinstance(value, bool) else f"not {value}" if isinstance(value, str) else value + 1


def test_llama_is_taken() -> None:
    """And what the kernels know beside it."""
    assert supports(LLAMA)
    gemma = {"activation": "gelu_pytorch_tanh", "post_norms": True, "qk_norm": "head", "window": 9, "attn_softcap": 5.0}
    assert supports(msgspec.structs.replace(LLAMA, **gemma, query_scale=0.3, rotary_dim=6, sinks=True, pre_norms=False))


@pytest.mark.parametrize("name", UNKNOWN)
def test_a_field_that_the_kernels_do_not_know_has_to_be_llamas(name: str) -> None:
    """Whatever it does, they would leave it out."""
    assert not supports(msgspec.structs.replace(LLAMA, **{name: other(name, getattr(LLAMA, name))}))


def test_a_field_of_tomorrow_is_not_known() -> None:
    """A family that needs a new word in the block is refused by the kernels until they are taught it."""
    grown = msgspec.defstruct("Grown", [("residual_multiplier", float, 1.0)], bases=(BlockConfig,), frozen=True)
    fields = msgspec.structs.asdict(LLAMA)
    assert supports(grown(**fields))
    assert not supports(grown(**fields, residual_multiplier=0.5))


@pytest.mark.parametrize(
    "fields",
    [{"activation": "gelu"}, {"qk_norm": "full"}, {"head_dim": MAX_HEAD_DIM + 2}],
    ids=lambda one: next(iter(one)),
)
def test_values_that_the_kernels_do_not_know(fields: dict[str, Any]) -> None:
    """Of fields that they do know."""
    assert not supports(msgspec.structs.replace(LLAMA, **fields))


def test_known_fields_exist() -> None:
    """A field that is renamed is renamed here as well."""
    assert {field.name for field in msgspec.structs.fields(BlockConfig)} > KNOWN_FIELDS
