"""Models of several families, quantized and read back: at many bits they say what the original says."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal.model.families import model_config
from shoal.model.weights.block_loading import load_blocks
from shoal.model.weights.model_source import open_checkpoint
from shoal.quantize.quantization_job import QuantizationJob
from shoal.quantize.quantization_report import QuantizationReport
from shoal.types import Span
from tests.support.family_cases import Case, save_checkpoint
from tests.support.quantized_models import small_options
from tests.support.tiny_models import tiny_tokenizer

SIZES = {"vocab_size": 258, "hidden_size": 64, "intermediate_size": 96, "head_dim": 16, "num_hidden_layers": 2}
CASES = [
    Case("qwen2", "biases", SIZES),
    Case("gemma2", "norms behind, soft caps, windows", {**SIZES, "sliding_window": 20, "query_pre_attn_scalar": 16}),
    Case("olmo2", "norms over all heads, a head of its own", {**SIZES, "tie_word_embeddings": False}),
    Case("mixtral", "experts", {**SIZES, "num_local_experts": 4, "num_experts_per_tok": 2}),
    Case("llama", "inputs that the format cannot hold", {**SIZES, "intermediate_size": 100}),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.model_type} {case.name}")
def test_at_many_bits_the_model_is_the_same(case: Case, tmp_path: Path) -> None:
    """The real bits are within a per cent below the target, and the directory is read back."""
    model = tiny_tokenizer(save_checkpoint(case, tmp_path / "model"), SIZES["vocab_size"])
    found: list[QuantizationReport] = []
    target = 8.5 if case.model_type == "llama" else 6.8
    options = small_options(model, tmp_path / "out", bits=target, head_bits=8)
    QuantizationJob(options, lambda *_: None).run(lambda _, report: found.append(report))
    assert 0.99 * target <= found[0].bits_per_weight <= target
    assert found[0].evaluation.divergence < 0.01
    checkpoint = open_checkpoint(str(tmp_path / "out"))
    config = model_config(checkpoint.config)
    assert len(load_blocks(checkpoint, config, Span(0, config.num_blocks))) == 2
