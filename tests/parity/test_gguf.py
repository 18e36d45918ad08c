"""Families from GGUF files: the same logits as from safetensors, and as transformers makes of the same file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from shoal.nn.families import FAMILIES, model_config
from shoal.testing.certify import Loaded, load, logits, prompt
from shoal.testing.families import CASES, Case, Fields, save_checkpoint
from shoal.testing.ggufs import architecture_of, write_gguf
from shoal.types import Span
from shoal.weights.ggufmodels import ARCHITECTURES
from shoal.weights.loading import load_blocks, load_ends
from shoal.weights.source import open_checkpoint

READ = [case for case in CASES if architecture_of(case.model_type) is not None]
NOT_SAID = {
    ("gemma3_text", "stretched"): "the converter writes no scaling of the full blocks' rope",
    ("phi3", "short factors"): "not written here",
    ("phi3", "long factors, a part of each head"): "not written here",
    ("qwen3_moe", "a dense block, not normalized"): "the format says nothing of dense blocks",
    ("falcon", "new layout, one norm, untied"): "the format knows two norms in the new layout",
    ("falcon", "one after the other"): "the format knows blocks side by side only",
    ("qwen2", "windows in the last block"): "the format says nothing of windows",
    ("qwen3", "yarn"): "is written for gpt-oss",
    ("llama", "linear rope"): "not written here",
    ("llama", "llama 3 rope"): "tests/unit/weights/test_gguf.py has it",
    ("llama", "dynamic rope"): "the format has no such kind",
    ("llama", "gelu"): "the format knows SiLU only",
    ("mistral", "window"): "the format says nothing of Mistral's window",
    ("gemma2", ""): "blocks alternate in the format",
}
BY_TRANSFORMERS = ("llama", "qwen2", "bloom", "falcon", "phi3", "gemma2", "gemma3_text")
"""Those that transformers reads whole. It leaves out the width of Qwen 3's heads and experts, and Phi 3's window."""


def _cases() -> list[Case]:
    """Those that the format can say, Gemmas with the blocks' order and heads that it takes for granted."""
    kept = [case for case in READ if (case.model_type, case.name) not in NOT_SAID]
    alternating = ["sliding_attention", "full_attention", "sliding_attention"]
    fields = {"query_pre_attn_scalar": 256, "head_dim": 256, "sliding_window": 40}
    every_sixth = [*["sliding_attention"] * 5, "full_attention", "sliding_attention"]
    changed: dict[str, Fields] = {
        "phi3": {"sliding_window": None, "tie_word_embeddings": False},
        "gemma3_text": {**fields, "layer_types": every_sixth, "num_hidden_layers": 7},
        "gemma2": {**fields, "layer_types": alternating},
    }
    base = [case for case in kept if case.model_type not in changed]
    return base + [Case(model_type, "", fields) for model_type, fields in changed.items()]


@pytest.mark.parametrize("case", _cases(), ids=lambda case: f"{case.model_type}-{case.name}".replace(" ", "-"))
def test_a_gguf_file_says_what_safetensors_say(tmp_path: Path, case: Case) -> None:
    """What the converter reorders, shifts and stacks is undone: the logits are those of the directory it was made of."""
    loaded = load(save_checkpoint(case, tmp_path / "hf"), case.granted)
    path = tmp_path / "model.gguf"
    write_gguf(tmp_path / "hf", path)
    ours = from_gguf(path, loaded)
    torch.testing.assert_close(logits(ours), logits(loaded), rtol=0, atol=2e-5)
    if case.model_type in BY_TRANSFORMERS and not case.name:
        torch.testing.assert_close(logits(ours), by_transformers(path, ours), rtol=0, atol=1e-4)


def from_gguf(path: Path, loaded: Loaded) -> Loaded:
    """The same model from its GGUF file."""
    checkpoint = open_checkpoint(str(path))
    config = model_config(checkpoint.config)
    blocks = load_blocks(checkpoint, config, Span(0, config.num_blocks))
    return loaded._replace(config=config, blocks=blocks, ends=load_ends(checkpoint, config))


def by_transformers(path: Path, ours: Loaded) -> torch.Tensor:
    """What transformers' own reading of the file makes of the prompt."""
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(
        str(path.parent), gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        found: torch.Tensor = reference.eval()(torch.tensor([prompt(ours.config.vocab_size)])).logits[0]
    return found


def test_every_architecture_is_tried() -> None:
    """Each that is read stands for a family, and is among the cases above."""
    assert {known.model_type for known in ARCHITECTURES.values()} <= set(FAMILIES)
    assert {architecture_of(case.model_type) for case in _cases()} == set(ARCHITECTURES)
