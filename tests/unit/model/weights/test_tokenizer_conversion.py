"""Tokenizers as data: what is taken from transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers

from shoal.model.weights.tokenizer_conversion import convert
from tests.support.tiny_models import tiny_llama, tiny_tokenizer


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A tiny model with a tokenizer of all bytes."""
    tiny_llama(tmp_path / "tiny", vocab_size=258)
    return tiny_tokenizer(tmp_path / "tiny", 258)


def test_everything_that_a_tokenizer_needs_is_data(model: Path) -> None:
    """Its JSON, special tokens by their role, the end token; templates by name."""
    config = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": "one"}))
    data = convert(str(model))
    assert tokenizers.Tokenizer.from_buffer(bytes(data.tokenizer)).encode("sea", add_special_tokens=False).ids
    assert data.chat_templates == {"default": "one"}
    assert data.special_tokens["eos_token"]
    assert data.eos_token_id == 1
    assert not data.splits_special_tokens


def test_texts_are_neither_cut_nor_filled(model: Path) -> None:
    """Whatever the file asks for: a prompt is whole."""
    path = model / "tokenizer.json"
    backend = tokenizers.Tokenizer.from_file(str(path))
    backend.enable_truncation(2)
    backend.enable_padding(length=10)
    backend.save(str(path))
    read = tokenizers.Tokenizer.from_buffer(bytes(convert(str(model)).tokenizer))
    assert len(read.encode("the sea", add_special_tokens=False).ids) == 7
