"""JSON beside a checkpoint's tensors, from strangers."""

from __future__ import annotations

import json

import pytest
import torch

from shoal.errors import CheckpointError, UnsupportedModel
from shoal.model.weights.checkpoint_files import MAX_CONFIG_BYTES, index_places, parse_config, unpacked
from shoal.model.weights.packed_checkpoint import PackedCheckpoint
from tests.unit.model.weights.checkpoints import MemoryCheckpoint


@pytest.mark.parametrize("text", [b"", b"[1]", b"{", b"\xff\xfe", b"[" * 100_000, b'"x"'])
def test_what_is_no_object_is_refused_by_its_name(text: bytes) -> None:
    """Half a file, another kind, or nothing but brackets."""
    with pytest.raises(CheckpointError, match=r"config\.json is not"):
        parse_config(text, "config.json")
    assert parse_config(b'{"a": 1}', "config.json") == {"a": 1}


def test_a_huge_configuration_is_not_parsed() -> None:
    """It is refused by its size."""
    with pytest.raises(CheckpointError, match="no configuration is so large"):
        parse_config(b" " * (64 * MAX_CONFIG_BYTES + 1), "config.json")


def test_an_index_names_plain_files() -> None:
    """Each once, in order."""
    weight_map = {"b": "model-2.safetensors", "a": "model-1.safetensors", "c": "model-2.safetensors"}
    text = json.dumps({"weight_map": weight_map}).encode()
    assert sorted(set(index_places(text, "index").values())) == ["model-1.safetensors", "model-2.safetensors"]


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/x.safetensors", "a/b.safetensors", "x.bin", "x.safetensors\n", 3, None]
)
def test_an_index_that_leads_elsewhere_is_refused(name: object) -> None:
    """Other folders, other files, what is no name."""
    with pytest.raises(CheckpointError, match="does not map"):
        index_places(json.dumps({"weight_map": {"a": name}}).encode(), "index")
    with pytest.raises(CheckpointError, match="does not map"):
        index_places(b'{"weight_map": {}}', "index")


def test_packed_weights_are_told_by_the_configuration() -> None:
    """Plain ones are left alone; some ways of packing are read, others are named."""
    plain = MemoryCheckpoint({"a": torch.zeros(2)})
    assert unpacked(plain) is plain
    fp8 = {"quant_method": "fp8", "weight_block_size": [2, 2]}
    for known in ({"quant_method": "mxfp4"}, fp8):
        assert isinstance(unpacked(MemoryCheckpoint({}, quantization_config=known)), PackedCheckpoint)
    for other in ({"quant_method": "bitsandbytes"}, {"quant_method": "fp8"}, {"quant_method": ["awq"]}, "awq", {}):
        with pytest.raises(UnsupportedModel, match="memory: weights quantized by"):
            unpacked(MemoryCheckpoint({}, quantization_config=other))
    with pytest.raises(UnsupportedModel, match="memory: GPTQ weights of None bits"):
        unpacked(MemoryCheckpoint({}, quantization_config={"quant_method": "gptq"}))
