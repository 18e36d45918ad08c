"""Small random models that the tests of quantizing share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shoal.quantize.quantize_options import QuantizeOptions
from tests.support.tiny_models import tiny_llama, tiny_tokenizer

SIZES = {"vocab_size": 258, "hidden_size": 64, "intermediate_size": 160, "head_dim": 16, "num_hidden_layers": 3}
"""All inputs are multiples of 32; the last group of `down` is a shorter one."""


def small_llama(folder: Path, **overrides: Any) -> Path:
    """A random Llama with a tokenizer of bytes."""
    path = tiny_llama(folder, **{**SIZES, **overrides})
    return tiny_tokenizer(path, SIZES["vocab_size"])


def small_options(model: Path, out: Path, **given: Any) -> QuantizeOptions:
    """Few and short rows; one thread, so that bits do not depend on the machine."""
    fields = {"rows": 6, "length": 48, "evaluation_rows": 2, "threads": 1, "bits": 4.0, **given}
    return QuantizeOptions.of({"model": str(model), "out": out, **fields})
