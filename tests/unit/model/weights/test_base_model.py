"""Whether a quantized checkpoint can have been made from another: both describe the same blocks, or the field is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from shoal.model.families import model_config
from shoal.model.nn.block import ModelConfig
from shoal.model.weights.base_model import differences
from shoal.model.weights.model_source import open_checkpoint
from tests.foreign.cases import FOREIGN, path_of, save_original
from tests.support.family_cases import Case

QUANTIZED = Path(__file__).parents[3] / "foreign" / "quantized"


def config_at(path: Path) -> ModelConfig:
    """What a checkpoint's files describe."""
    return model_config(open_checkpoint(str(path)).config)


@pytest.mark.parametrize("case", FOREIGN, ids=lambda case: path_of(case).stem)
def test_a_file_of_llama_cpp_is_of_the_checkpoint_that_it_was_made_from(case: Case, tmp_path: Path) -> None:
    """Of every family, whatever the file leaves out, rounds to fp32 or has worked out: nothing differs."""
    assert differences(config_at(path_of(case)), config_at(save_original(case, tmp_path))) == []


@pytest.mark.parametrize("method", ["awq", "gptq", "compressed-tensors"])
def test_files_of_another_program_are_of_their_source(method: str) -> None:
    """AutoRound's."""
    assert differences(config_at(QUANTIZED / method), config_at(QUANTIZED / "source")) == []


SOURCE = config_at(QUANTIZED / "source")
BLOCK = SOURCE.block


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"num_blocks": 2}, ["num_blocks (2, not 1)"]),
        ({"vocab_size": 200, "max_positions": 9}, ["vocab_size (200, not 131)", "max_positions (9, not 512)"]),
        ({"block": {"num_kv_heads": 4}}, ["num_kv_heads (4, not 2)"]),
        ({"block": {"norm_eps": 1.1e-6}}, ["norm_eps (1.1e-06, not 1e-06)"]),
        ({"block": {"query_scale": 0.3}}, ["query_scale (0.3, not 0.25)"]),
        ({"stored": {"mlp_bias": True}}, ["stored.mlp_bias (True, not False)"]),
        ({"block": {"norm_eps": 1.0000001e-6, "query_scale": 0.25}}, []),
        ({"tied_head": True, "eos_token_ids": (7,), "model_type": "mistral"}, []),
    ],
)
def test_the_field_that_differs_is_named(change: dict[str, Any], told: list[str]) -> None:
    """With both values; not what only the client computes, nor how a number was rounded."""
    fields = {
        name: msgspec.structs.replace(getattr(SOURCE, name), **new) if isinstance(new, dict) else new
        for name, new in change.items()
    }
    assert differences(msgspec.structs.replace(SOURCE, **fields), SOURCE) == told


def test_ropes_are_compared_by_their_angles() -> None:
    """Another base turns otherwise; factors of one are no other rope."""
    rope = BLOCK.rope
    for change, same in (
        ({"theta": 10_001.0}, False),
        ({"factors": (1.0,) * 8}, True),
        ({"factors": (2.0,) * 8}, False),
        ({"kind": "linear", "factor": 1.0}, True),
        ({"kind": "linear", "factor": 2.0}, False),
        ({"attention_factor": 1.1}, False),
    ):
        block = msgspec.structs.replace(BLOCK, rope=msgspec.structs.replace(rope, **change))
        told = differences(msgspec.structs.replace(SOURCE, block=block), SOURCE)
        assert [text.split(" ")[0] for text in told] == ([] if same else ["rope"])
