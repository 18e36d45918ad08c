"""What ends a text: by id, by text, and by what stands beside the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shoal.model.families import gguf_family
from shoal.model.families.gguf_mapping import GgufFields
from shoal.model.weights.end_tokens import END_TEXTS, known_by_text, named_end_tokens
from shoal.model.weights.model_source import open_checkpoint
from tests.support.family_cases import CASES, save_checkpoint
from tests.support.gguf_files import write_gguf
from tests.unit.model.families.configurations import GgufMemory

GPT_OSS = ["<|return|>", "<|endoftext|>", "<|call|>", "<|end|>", "<|start|>"]


def ids(file: GgufMemory) -> object:
    """The end tokens of a GGUF file in HF's terms."""
    _, mapping = gguf_family(file)
    return mapping.config(GgufFields(file, mapping.architecture))["eos_token_id"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"eos": 0, "eot": 2}, [0, 2]),
        ({"eos": 0, "eot": 2, "eom": 7}, [0, 2, 7]),
        ({"eos": 2, "eot": 2}, 2),
        ({"eot": 3}, 3),
        ({"eom": 3, "eos": 4}, [4, 3]),
        ({"eos": 0, "eot": "</s>", "eom": True}, 0),
        ({"bos": 1}, None),
    ],
)
def test_a_file_names_several(given: dict[str, object], expected: object) -> None:
    """The ends of a text, of a turn and of a message; what is no token id is none."""
    file = GgufMemory("llama")
    file.metadata |= {f"tokenizer.ggml.{kind}_token_id": value for kind, value in given.items()}
    assert ids(file) == expected


def test_generation_config_beside_a_gguf_file(tmp_path: Path) -> None:
    """What stands beside the file counts as well."""
    write_gguf(save_checkpoint(CASES[0], tmp_path / "model"), tmp_path / "model.gguf")
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 9]}))
    assert named_end_tokens(open_checkpoint(str(tmp_path / "model.gguf"))) == {1, 5, 9}


@pytest.mark.parametrize("text", END_TEXTS)
def test_an_end_is_known_by_its_text(text: str) -> None:
    """Beside those that are named, if it is one special token."""
    assert known_by_text(frozenset({3}), {text: 7, "<|im_start|>": 8}.get) == {3, 7}
    assert known_by_text(frozenset(), {}.get) == frozenset()


def test_what_stands_between_the_parts_of_an_answer_ends_nothing() -> None:
    """gpt-oss says <|end|> before its answer, and Gemma 4 has a </s> that means nothing."""
    assert known_by_text(frozenset({0}), {text: index for index, text in enumerate(GPT_OSS)}.get) == {0, 1, 2}
    assert known_by_text(frozenset({3}), {text: index for index, text in enumerate(GPT_OSS)}.get) == {0, 1, 2}
    assert known_by_text(frozenset(), {"</s>": 1, "<|tool_response>": 2, "<turn|>": 3}.get) == {2, 3}
    assert known_by_text(frozenset(), {"<|end|>": 1, "<|return|>": 2}.get) == {1, 2}
