"""What a model's name can stand for, and tokenizers beside it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from shoal.errors import CheckpointError, ModelNotFound, UsageError
from shoal.testing.tiny import tiny_llama, tiny_tokenizer
from shoal.weights.checkpoint import fingerprint
from shoal.weights.source import open_checkpoint
from shoal.weights.tokenizer import load_tokenizer


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A tiny model with a tokenizer."""
    tiny_llama(tmp_path / "tiny")
    return tiny_tokenizer(tmp_path / "tiny")


def shard(folder: Path) -> None:
    """Cut the one file of a model in two, with an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {name: f"part-{index % 2}.safetensors" for index, name in enumerate(names)}
    for file in set(weight_map.values()):
        save_file({name: tensors[name] for name in names if weight_map[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_a_directory_whole_and_sharded_is_one_model(model: Path) -> None:
    """How the tensors are spread over files changes neither tensors nor fingerprint."""
    before = open_checkpoint(str(model))
    names, mark = set(before.tensors), fingerprint(before)
    shard(model)
    after = open_checkpoint(str(model))
    assert (set(after.tensors), fingerprint(after)) == (names, mark)
    assert after.name == "tiny"


def test_a_stale_index_is_not_believed(model: Path) -> None:
    """An index that names files which do not exist gives way to the files that do."""
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00009.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model.norm.weight" in open_checkpoint(str(model)).tensors


@pytest.mark.parametrize("text", ["[]", "{", '{"weight_map": {"a": "../../etc/passwd"}}', '{"weight_map": {"a": 3}}'])
def test_a_broken_index_is_named(model: Path, text: str) -> None:
    """Paths out of the directory are not followed."""
    (model / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"index\.json"):
        open_checkpoint(str(model))


def test_another_model_of_the_same_shape_has_another_fingerprint(tmp_path: Path) -> None:
    """A fine-tune is told from its base."""
    one, other = (fingerprint(open_checkpoint(str(tiny_llama(tmp_path / str(seed), seed=seed)))) for seed in (1, 2))
    assert one != other


def test_names_that_stand_for_nothing(tmp_path: Path) -> None:
    """Each error says what was looked for."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "holds").mkdir()
    (tmp_path / "holds" / "it.gguf").write_bytes(b"GGUF")
    (tmp_path / "notes.txt").write_text("hello")
    for name, words in (
        (str(tmp_path / "empty"), "safetensors"),
        (str(tmp_path / "holds"), r"it\.gguf"),
        (str(tmp_path / "notes.txt"), "neither"),
        (str(tmp_path / "none.gguf"), "no file"),
        ("./nowhere", "nowhere"),
    ):
        with pytest.raises(ModelNotFound, match=words):
            open_checkpoint(name)


def test_end_tokens_come_from_everywhere(model: Path) -> None:
    """config.json, generation_config.json and the tokenizer each may name some."""
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 9]}))
    tokenizer = load_tokenizer(open_checkpoint(str(model)))
    assert tokenizer.eos_token_ids == {1, 7, 9}
    assert tokenizer.decode(tokenizer.encode("sea")) == "sea"


def test_a_model_without_a_chat_template_says_so(model: Path) -> None:
    """Chatting needs one; plain text does not."""
    tokenizer = load_tokenizer(open_checkpoint(str(model)))
    assert not tokenizer.has_chat_template
    with pytest.raises(UsageError, match="chat template"):
        tokenizer.encode_chat([{"role": "user", "content": "hi"}])


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    """Weights alone are not enough for a client."""
    tiny_llama(tmp_path / "bare")
    with pytest.raises(ModelNotFound, match="tokenizer"):
        load_tokenizer(open_checkpoint(str(tmp_path / "bare")))
