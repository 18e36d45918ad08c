"""GGUF files against transformers' own reading of them; tests/parity/test_families.py compares them with safetensors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from shoal.model.families import gguf_architectures
from tests.support.certify import from_gguf, load, logits, prompt
from tests.support.family_cases import CASES, WINDOWED, Case
from tests.support.family_cases import save_checkpoint as save
from tests.support.gguf_files import architecture_of, write_gguf

GEMMA = {"query_pre_attn_scalar": 256, "head_dim": 256, "sliding_window": 40}
FALCON = next(case for case in CASES if case.model_type == "falcon")
READ = [
    *(case for case in CASES if case.model_type in ("llama", "qwen2", "bloom") and not case.name),
    FALCON._replace(fields={**FALCON.fields, "layer_norm_epsilon": 1e-5}),
    Case("phi3", "no window", {"sliding_window": None, "tie_word_embeddings": False}),
    Case("gemma2", "wide heads", {**GEMMA, "layer_types": WINDOWED}),
    Case("gemma3_text", "wide heads", {**GEMMA, "layer_types": ["sliding_attention"] * 3}),
]
"""What transformers reads whole: not the width of Qwen 3's heads, the inner width of experts, Phi 3's window, say, and of
Falcon not the epsilon."""


@pytest.mark.parametrize("case", READ, ids=lambda case: case.model_type)
def test_a_file_says_the_same_here_and_to_transformers(tmp_path: Path, case: Case) -> None:
    """What the converter reorders, shifts and stacks is undone alike: logits within 1e-4."""
    from transformers import AutoModelForCausalLM

    path = tmp_path / "model.gguf"
    write_gguf(save(case, tmp_path / "hf"), path)
    ours = from_gguf(load(tmp_path / "hf"), path)
    reference = AutoModelForCausalLM.from_pretrained(
        str(tmp_path), gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        expected = reference.eval()(torch.tensor([prompt(ours.config.vocab_size)])).logits[0]
    torch.testing.assert_close(logits(ours), expected, rtol=0, atol=1e-4)


def test_every_architecture_is_tried() -> None:
    """The table has a case for each that is read."""
    assert {architecture_of(case.model_type) for case in CASES if case.gguf} == set(gguf_architectures())
