"""gpt-oss with its experts in MXFP4, as its real checkpoints have them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from shoal.errors import CheckpointError, UnsupportedModel
from shoal.model.weights.block_loading import block_digests, load_blocks
from shoal.model.weights.model_source import open_checkpoint
from shoal.types import Span
from tests.parity.packed import block_costs_its_bytes, write, write_plain
from tests.support.certify import load, logits, prompt
from tests.support.family_cases import CASES, save_checkpoint

GPT_OSS = next(case for case in CASES if case.model_type == "gpt_oss")
WIDE = GPT_OSS._replace(fields={**GPT_OSS.fields, "hidden_size": 64, "intermediate_size": 96})


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """A checkpoint with random codes and scales for its experts."""
    directory = save_checkpoint(WIDE, tmp_path)
    tensors = load_file(directory / "model.safetensors")
    generator = torch.Generator().manual_seed(5)
    for name in [name for name in tensors if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        experts, columns, rows = tensors.pop(name).shape
        shape = (experts, rows, columns // 32)
        tensors[f"{name}_blocks"] = torch.randint(256, (*shape, 16), generator=generator).to(torch.uint8)
        tensors[f"{name}_scales"] = torch.randint(122, 125, shape, generator=generator).to(torch.uint8)
    write(directory, tensors, {"quant_method": "mxfp4"})
    return directory


def test_logits_are_those_of_transformers(packed: Path) -> None:
    """transformers unpacks the same bytes by its own code, to fp32; a session's logits agree within 1e-4."""
    from transformers import AutoModelForCausalLM
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    tensors = load_file(packed / "model.safetensors")
    for name in [name.removesuffix("_blocks") for name in tensors if name.endswith("_blocks")]:
        pair = tensors.pop(f"{name}_blocks"), tensors.pop(f"{name}_scales")
        tensors[name] = convert_moe_packed_tensors(*pair, dtype=torch.float32).contiguous()
    plain = write_plain(packed, tensors)
    loaded = load(plain)
    checkpoint = open_checkpoint(str(packed))
    blocks = load_blocks(checkpoint, loaded.config, Span(0, 3))
    ours = loaded._replace(blocks=blocks)
    reference = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        expected = reference(torch.tensor([prompt(loaded.config.vocab_size)])).logits[0]
    torch.testing.assert_close(logits(ours), expected, rtol=0, atol=1e-4)
    assert block_digests(blocks) == block_digests(loaded.blocks)


def test_a_block_costs_its_packed_bytes(packed: Path) -> None:
    """Counted: four bits and a bit more for each number of the experts, and each stacked tensor once."""
    assert block_costs_its_bytes(packed)


@pytest.mark.parametrize("lie", ["no scales", "floats", "15 bytes", "fewer scales"])
def test_pairs_that_cannot_be(packed: Path, lie: str) -> None:
    """Blocks without scales, of another type, or of other shapes are refused by name before anything is read."""
    tensors = load_file(packed / "model.safetensors")
    name = "model.layers.1.mlp.experts.down_proj"
    blocks, scales = tensors[f"{name}_blocks"], tensors[f"{name}_scales"]
    if lie == "no scales":
        del tensors[f"{name}_scales"]
    elif lie == "floats":
        tensors[f"{name}_scales"] = scales.to(torch.float32)
    elif lie == "15 bytes":
        tensors[f"{name}_blocks"] = blocks[..., :15].contiguous()
    else:
        tensors[f"{name}_scales"] = scales[:, :-1].contiguous()
    write(packed, tensors, {"quant_method": "mxfp4"})
    with pytest.raises(CheckpointError, match=name):
        open_checkpoint(str(packed))


@pytest.mark.parametrize("quantization", [{"quant_method": "fp8"}, {}, "fp8"])
def test_other_ways_of_packing_are_named(packed: Path, quantization: object) -> None:
    """What is not read is refused when the checkpoint is opened."""
    write(packed, load_file(packed / "model.safetensors"), quantization)
    with pytest.raises(UnsupportedModel, match="mxfp4 are"):
        open_checkpoint(str(packed))
