"""DeepSeek V3 with its matrices in 8-bit floats and a scale for each block, as its real checkpoints have them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from shoal.errors import CheckpointError, UnsupportedModel
from shoal.model.weights.block_loading import block_digests, load_blocks
from shoal.model.weights.model_source import open_checkpoint
from shoal.types import Span
from tests.parity.packed import block_costs_its_bytes, write, write_plain
from tests.support.certify import load, logits, prompt
from tests.support.family_cases import CASES, save_checkpoint

DEEPSEEK = next(case for case in CASES if case.model_type == "deepseek_v3")
BLOCK = (16, 32)
FP8 = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": list(BLOCK)}
KEPT = ("norm.weight", "mlp.gate.weight", "embed_tokens.weight", "lm_head.weight")
MATRIX = "model.layers.1.self_attn.o_proj.weight"


def blocks_of(matrix: Tensor) -> Tensor:
    """[n, k] → the numbers of each block in fp32, by the definition: [⌈n / 16⌉, ⌈k / 32⌉, 16, 32], filled up with zeros."""
    rows, columns = (-(-size // step) for size, step in zip(matrix.shape, BLOCK, strict=True))
    filled = torch.zeros(rows * BLOCK[0], columns * BLOCK[1])
    filled[: matrix.shape[0], : matrix.shape[1]] = matrix.float()
    return filled.view(rows, BLOCK[0], columns, BLOCK[1]).transpose(1, 2)


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """A checkpoint in which everything but norms, routers and both ends is rounded, block by block."""
    directory = save_checkpoint(DEEPSEEK, tmp_path)
    tensors = load_file(directory / "model.safetensors")
    for name in [name for name in tensors if name.endswith(".weight") and not name.endswith(KEPT)]:
        matrix = tensors[name]
        scales = blocks_of(matrix).abs().amax((2, 3)) / 448
        spread = scales.repeat_interleave(BLOCK[0], 0).repeat_interleave(BLOCK[1], 1)
        tensors[name] = (matrix.float() / spread[: matrix.shape[0], : matrix.shape[1]]).to(torch.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = scales
    assert MATRIX in tensors
    write(directory, tensors, FP8)
    return directory


def plain_of(packed: Path) -> Path:
    """The same numbers in fp32."""
    tensors = load_file(packed / "model.safetensors")
    for name in [name.removesuffix("_scale_inv") for name in tensors if name.endswith("_scale_inv")]:
        scales, codes = tensors.pop(f"{name}_scale_inv"), tensors[name]
        whole = (blocks_of(codes) * scales[:, :, None, None]).transpose(1, 2).flatten(2).flatten(0, 1)
        tensors[name] = whole[: codes.shape[0], : codes.shape[1]].contiguous()
    return write_plain(packed, tensors)


def test_logits_are_those_of_transformers_on_the_same_numbers(packed: Path) -> None:
    """A session's logits agree within 1e-4 with transformers on the checkpoint written out in fp32."""
    from transformers import AutoModelForCausalLM

    plain = plain_of(packed)
    loaded = load(plain)
    blocks = load_blocks(open_checkpoint(str(packed)), loaded.config, Span(0, 3))
    reference = AutoModelForCausalLM.from_pretrained(
        plain, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
    ).eval()
    with torch.no_grad():
        expected = reference(torch.tensor([prompt(loaded.config.vocab_size)])).logits[0]
    torch.testing.assert_close(logits(loaded._replace(blocks=blocks)), expected, rtol=0, atol=1e-4)
    assert block_digests(blocks) == block_digests(loaded.blocks)


def test_a_block_costs_its_packed_bytes(packed: Path) -> None:
    """Counted: a byte for each number of a matrix, and its scales."""
    assert block_costs_its_bytes(packed)


@pytest.mark.parametrize("lie", ["no scales", "whole scales", "fewer scales", "a vector"])
def test_matrices_that_cannot_be(packed: Path, lie: str) -> None:
    """Codes without scales, or with scales of another type or shape, are refused by name before anything is read."""
    tensors = load_file(packed / "model.safetensors")
    scales = tensors[f"{MATRIX}_scale_inv"]
    if lie == "no scales":
        del tensors[f"{MATRIX}_scale_inv"]
    elif lie == "whole scales":
        tensors[f"{MATRIX}_scale_inv"] = scales.to(torch.int32)
    elif lie == "fewer scales":
        tensors[f"{MATRIX}_scale_inv"] = scales[:, :-1].contiguous()
    else:
        tensors[MATRIX] = tensors[MATRIX].flatten()
    write(packed, tensors, FP8)
    with pytest.raises(CheckpointError, match=MATRIX):
        open_checkpoint(str(packed))


@pytest.mark.parametrize("change", [{"fmt": "e5m2"}, {"weight_block_size": None}, {"weight_block_size": [0, 128]}])
def test_other_forms_are_refused(packed: Path, change: dict[str, object]) -> None:
    """One scale for a whole tensor, other floats, and blocks that cannot be."""
    write(packed, load_file(packed / "model.safetensors"), {**FP8, **change})
    with pytest.raises(UnsupportedModel, match="fp8"):
        open_checkpoint(str(packed))
