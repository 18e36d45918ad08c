"""GGUF files that llama.cpp wrote: its converter's order of numbers, its quantizer's codes, and the logits that it computed."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file

from shoal.model.families import FAMILIES, family, model_config
from shoal.model.nn.block import Block, BlockConfig, ModelConfig
from shoal.model.nn.rope import frequencies
from shoal.model.weights.block_loading import load_blocks
from shoal.model.weights.byte_source import LocalFile
from shoal.model.weights.gguf_file import GgufFile
from shoal.model.weights.model_source import open_checkpoint
from shoal.types import Span
from tests.foreign.cases import FILES, FOREIGN, QUANTIZED, TOKENS, WIDE, path_of, save_original
from tests.support.certify import from_gguf, load, logits, prompt, reference_logits
from tests.support.family_cases import Case


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """The models are tiny."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def computed() -> dict[str, torch.Tensor]:
    """The logits that llama.cpp computed, by the file's name."""
    return load_file(FILES / "logits.safetensors")


def alike(one: Any, other: Any) -> bool:
    """The same, but for what fp32 rounds: files hold no more of a number."""
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-6)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(alike(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(alike, one, other))
    return bool(one == other)


def compared(config: ModelConfig, granted: int) -> dict[str, Any]:
    """What a file without a vocabulary says of a model; of ropes the angles, since files hold some as their factors."""
    fields: dict[str, Any] = msgspec.to_builtins(config)
    del fields["eos_token_ids"], fields["model_type"], fields["block"], fields["block_kinds"]
    kinds = []
    for kind in config.distinct_blocks:
        turns = frequencies(kind.rope, kind.rotated_dim, granted).tolist(), kind.rope.attention_factor
        kinds.append({**msgspec.to_builtins(kind), "rope": turns})
    return {**fields, "kinds": kinds}


def as_llama_cpp(config: ModelConfig) -> ModelConfig:
    """The model with what llama.cpp computes otherwise than transformers.

    It leaves out Phi 3's window, and rounds the dimensions between which gpt-oss' rope is stretched.
    """

    def changed(block: BlockConfig) -> BlockConfig:
        if config.model_type == "phi3":
            return msgspec.structs.replace(block, window=0)
        if config.model_type == "gpt_oss":
            return msgspec.structs.replace(block, rope=msgspec.structs.replace(block.rope, truncate=True))
        return block

    return msgspec.structs.replace(
        config, block=changed(config.block), block_kinds=tuple(map(changed, config.block_kinds))
    )


OTHER_ROWS = {"deepseek_v2-groups-yarn": 3}
"""Rows that llama.cpp sends to other experts: it ranks DeepSeek V2's groups by their best two, as V3's, and not by the best."""


def tolerance(config: ModelConfig) -> float:
    """What logits may differ by from llama.cpp's: rounding, or where it looks up GELU in a table of fp16, that table's."""
    return 3e-2 if config.block.activation.startswith("gelu") else 5e-5


@pytest.mark.parametrize("case", FOREIGN, ids=lambda case: path_of(case).stem)
def test_a_converted_file_is_the_checkpoint(case: Case, tmp_path: Path, computed: dict[str, torch.Tensor]) -> None:
    """Every number of every tensor, the configuration, and the logits of transformers and of llama.cpp."""
    path = path_of(case)
    loaded = load(save_original(case, tmp_path), case.granted)
    original, file = open_checkpoint(str(tmp_path)), open_checkpoint(str(path))
    ours, theirs = model_config(file.config), loaded.config
    assert alike(compared(ours, case.granted), compared(theirs, case.granted))
    described = family(ours.model_type)
    for index in range(ours.num_blocks):
        assert {one.name for one in described.block_tensors(ours, index).values()} <= file.tensors.keys()
    for name in file.tensors:
        assert torch.equal(file.read(name), original.read(name)), name
    read, ids = from_gguf(loaded, path), prompt(ours.vocab_size)
    torch.testing.assert_close(logits(read), reference_logits(loaded, ids), rtol=0, atol=1e-4)
    other = as_llama_cpp(ours)
    blocks: list[Block] = load_blocks(file, other, Span(0, other.num_blocks))
    found = logits(read._replace(config=other, blocks=blocks))[:TOKENS]
    apart = (found - computed[path.stem]).abs().amax(-1) > tolerance(other)
    assert int(apart.sum()) <= OTHER_ROWS.get(path.stem, 0), apart


@pytest.mark.parametrize("name", QUANTIZED)
def test_a_quantized_file_is_what_its_writer_reads(
    name: str, tmp_path: Path, computed: dict[str, torch.Tensor]
) -> None:
    """Every number of every tensor is the one that llama.cpp makes of the codes, and so are the logits."""
    path = FILES / f"{name}.gguf"
    said = json.loads((FILES / "quantized.json").read_text())[name]
    file = GgufFile(LocalFile(path))
    for tensor, (kind, digest) in said.items():
        assert file.info(tensor).dtype == kind
        found = hashlib.blake2b(file.read(tensor).numpy().tobytes(), digest_size=16).hexdigest()
        assert found == digest, (tensor, kind)
    assert {f"blk.0.{part}.weight": kind for part, kind in QUANTIZED[name].items() if part != "token_embd"}.items() <= {
        tensor: kind for tensor, (kind, _) in said.items()
    }.items()
    read = from_gguf(load(save_original(WIDE, tmp_path)), path)
    torch.testing.assert_close(logits(read)[:TOKENS], computed[name], rtol=0, atol=tolerance(read.config))


def test_every_family_is_pinned() -> None:
    """A file for each of which GGUF files are read, under whatever name of an architecture."""
    pinned = {case.model_type for case in FOREIGN}
    assert pinned >= {name for name, one in FAMILIES.items() if one.gguf is not None}
    assert {path_of(case).name for case in FOREIGN} | {f"{name}.gguf" for name in QUANTIZED} == {
        path.name for path in FILES.glob("*.gguf")
    }


def test_the_files_are_small() -> None:
    """Two megabytes in all."""
    assert sum(path.stat().st_size for path in FILES.iterdir()) < 2_000_000
