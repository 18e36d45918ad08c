"""Which files are a model, and what half a download is called."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from shoal.errors import CheckpointError, ModelNotFound
from shoal.model.weights.checkpoint import fingerprint
from shoal.model.weights.model_files import MAX_PARTS, Part, exl2_files, exl3_files, part_of, weight_files
from shoal.model.weights.model_source import open_checkpoint
from tests.support.family_cases import CASES, save_checkpoint
from tests.support.gguf_files import write_gguf
from tests.support.tiny_models import tiny_llama

PARTS = [f"model-{number:05}-of-00003.safetensors" for number in (1, 2, 3)]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A tiny model in one file."""
    return tiny_llama(tmp_path / "tiny")


def shard(folder: Path) -> dict[str, str]:
    """Cut the one file of a model in three, with an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places = {name: PARTS[index % 3] for index, name in enumerate(sorted(tensors))}
    for part in PARTS:
        save_file({name: tensors[name] for name in tensors if places[name] == part}, folder / part)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return places


def test_names_of_parts() -> None:
    """Numbered from 1, with five digits, and of a sensible count."""
    assert part_of("a-b-00002-of-00003.gguf") == Part("a-b", 2, 3, "gguf")
    assert Part("a", 1, 2, "gguf").all == ["a-00001-of-00002.gguf", "a-00002-of-00002.gguf"]
    for name in (
        "model.safetensors",
        "a-2-of-3.gguf",
        "a-00004-of-00003.gguf",
        "a-00000-of-00003.gguf",
        f"a-00001-of-{MAX_PARTS + 1:05}.gguf",
        "a-00001-of-00002.bin",
        "a-\u0660\u0660\u0660\u0660\u0661-of-00002.gguf",
    ):
        assert part_of(name) is None


@pytest.mark.parametrize(
    ("held", "indexed", "expected"),
    [
        (["model.safetensors", "consolidated.safetensors", "adapter_model.safetensors"], None, ["model.safetensors"]),
        (["model.safetensors", *PARTS], PARTS, ["model.safetensors"]),
        ([*PARTS, "consolidated.safetensors"], PARTS, PARTS),
        ([*PARTS, "consolidated.safetensors"], None, PARTS),
        (["model.safetensors", "other.safetensors"], ["other.safetensors"], ["model.safetensors"]),
    ],
)
def test_the_files_that_transformers_loads(held: list[str], indexed: list[str] | None, expected: list[str]) -> None:
    """One file before an index, an index before numbered parts; what lies beside them is not the model's."""
    assert weight_files("here", held, indexed) == expected


@pytest.mark.parametrize("gone", PARTS)
@pytest.mark.parametrize("indexed", [PARTS, None])
def test_half_a_download_is_named(gone: str, indexed: list[str] | None) -> None:
    """Whichever part is missing, with an index or by the names alone."""
    with pytest.raises(CheckpointError, match=rf"here is half a download: 1 of 3 files are missing \({gone}\)"):
        weight_files("here", [part for part in PARTS if part != gone], indexed)


@pytest.mark.parametrize(
    "held", [[], ["adapter_model.safetensors"], ["consolidated.safetensors"], ["model.fp16.safetensors"]]
)
def test_other_weights_are_not_the_model(held: list[str]) -> None:
    """The error says what there is."""
    with pytest.raises(ModelNotFound, match="here has no weights.*" + "".join(held)):
        weight_files("here", held, None)


def test_a_configuration_may_choose(model: Path) -> None:
    """As transformers reads it."""
    (model / "model.safetensors").rename(model / "mine.safetensors")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "transformers_weights": "mine.safetensors"}))
    assert "model.norm.weight" in open_checkpoint(str(model)).tensors
    (model / "config.json").write_text(json.dumps({**config, "transformers_weights": "../mine.safetensors"}))
    with pytest.raises(CheckpointError, match="half a download"):
        open_checkpoint(str(model))


def test_a_configuration_may_choose_an_index(model: Path) -> None:
    """Before any other weights; without it, or without its files, there is half a download."""
    before = fingerprint(open_checkpoint(str(model)))
    shard(model)
    (model / "model.safetensors.index.json").rename(model / "mine.safetensors.index.json")
    save_file({"other": torch.zeros(2)}, model / "model.safetensors")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "transformers_weights": "mine.safetensors.index.json"}))
    assert fingerprint(open_checkpoint(str(model))) == before
    (model / PARTS[2]).unlink()
    with pytest.raises(CheckpointError, match=f"half a download.*{PARTS[2]}"):
        open_checkpoint(str(model))
    (model / "mine.safetensors.index.json").unlink()
    with pytest.raises(CheckpointError, match=r"half a download.*mine\.safetensors\.index\.json"):
        open_checkpoint(str(model))


@pytest.mark.parametrize("chosen", ["model.bin", "adapter_model.bin", "", 5, "model.safetensors.index"])
def test_a_configuration_cannot_choose_other_files(model: Path, chosen: object) -> None:
    """No guess is made of what it means."""
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "transformers_weights": chosen}))
    with pytest.raises(CheckpointError, match="transformers_weights"):
        open_checkpoint(str(model))


def test_what_lies_beside_a_model_changes_nothing(model: Path) -> None:
    """Neither tensors nor fingerprint."""
    before = fingerprint(open_checkpoint(str(model)))
    for name in ("consolidated.safetensors", "adapter_model.safetensors"):
        save_file({"other": torch.zeros(2)}, model / name)
    assert fingerprint(open_checkpoint(str(model))) == before
    shard(model)
    assert fingerprint(open_checkpoint(str(model))) == before


def test_a_missing_shard_is_no_other_model(model: Path) -> None:
    """Neither with its index nor without."""
    shard(model)
    (model / PARTS[1]).unlink()
    for _ in range(2):
        with pytest.raises(CheckpointError, match=f"half a download.*{PARTS[1]}"):
            open_checkpoint(str(model))
        (model / "model.safetensors.index.json").unlink(missing_ok=True)


def test_an_index_without_its_files_is_half_a_download(model: Path) -> None:
    """Even if none of them came."""
    shard(model)
    for part in PARTS:
        (model / part).unlink()
    with pytest.raises(CheckpointError, match="3 of 3 files are missing"):
        open_checkpoint(str(model))


def test_a_shard_of_another_download_is_named(model: Path) -> None:
    """It lacks what the index has there."""
    places = shard(model)
    lost = next(name for name, part in places.items() if part == PARTS[2])
    tensors = load_file(model / PARTS[2])
    save_file({name: tensor for name, tensor in tensors.items() if name != lost}, model / PARTS[2])
    with pytest.raises(CheckpointError, match=f"{PARTS[2]} lacks {lost}"):
        open_checkpoint(str(model))


@pytest.mark.parametrize("name", ["model.safetensors", "model.gguf"])
def test_a_pointer_is_no_file(model: Path, name: str) -> None:
    """What Git leaves where LFS is not installed."""
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 1234567\n"
    (model / name).write_text(text)
    with pytest.raises(CheckpointError, match=r"half a download: a Git LFS pointer.*git lfs pull"):
        open_checkpoint(str(model if name == "model.safetensors" else model / name))


def split(folder: Path, whole: Path, count: int) -> list[Path]:
    """A GGUF file in parts, as llama.cpp's `gguf-split` writes them: all metadata in the first."""
    reader = gguf.GGUFReader(whole)
    paths = [folder / f"tiny-{number + 1:05}-of-{count:05}.gguf" for number in range(count)]
    for number, path in enumerate(paths):
        writer = gguf.GGUFWriter(str(path), "llama")
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", count)
        writer.add_int32("split.tensors.count", len(reader.tensors))
        for field in reader.fields.values() if number == 0 else ():
            if not field.name.startswith(("GGUF.", "general.architecture")):
                writer.add_key_value(field.name, field.contents(), field.types[0])
        for tensor in reader.tensors[number::count]:
            writer.add_tensor(tensor.name, np.array(tensor.data))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return paths


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    """A tiny GGUF file in three parts, beside the whole one."""
    write_gguf(save_checkpoint(CASES[0], tmp_path / "model"), tmp_path / "tiny.gguf")
    return split(tmp_path, tmp_path / "tiny.gguf", 3)


@pytest.mark.parametrize("named", [0, 1, 2])
def test_the_parts_of_a_gguf_file_are_one_model(parts: list[Path], named: int) -> None:
    """Whichever of them is named: the tensors and the fingerprint of the whole file; its source is the first part."""
    whole = open_checkpoint(str(parts[0].parent / "tiny.gguf"))
    found = open_checkpoint(str(parts[named]))
    assert found.source == str(parts[0])
    assert (fingerprint(found), found.tensors) == (fingerprint(whole), whole.tensors)
    assert all(torch.equal(found.read(name), whole.read(name)) for name in whole.tensors)


@pytest.mark.parametrize("gone", [0, 1, 2])
def test_a_missing_part_is_named(parts: list[Path], gone: int) -> None:
    """Half a download is no model."""
    parts[gone].unlink()
    with pytest.raises(CheckpointError, match=f"half a download: 1 of 3 files are missing.*{parts[gone].name}"):
        open_checkpoint(str(parts[gone - 1]))


def test_parts_that_do_not_belong_together(parts: list[Path]) -> None:
    """By their own word: in another order, under another name, or of two files."""
    first, second, third = (path.read_bytes() for path in parts)
    parts[1].write_bytes(third)
    with pytest.raises(CheckpointError, match="says that it is part 3 of 3, not part 2 of 3"):
        open_checkpoint(str(parts[0]))
    parts[1].write_bytes(second)
    alone = parts[0].parent / "alone.gguf"
    alone.write_bytes(first)
    with pytest.raises(CheckpointError, match=r"part 1 of 3, not part 1 of 1: all parts are needed"):
        open_checkpoint(str(alone))
    write_gguf(parts[0].parent / "model", parts[0])
    with pytest.raises(CheckpointError, match="says that it is part 1 of 1, not part 1 of 3"):
        open_checkpoint(str(parts[0]))


def test_files_of_exl2() -> None:
    """They have a name of their own; parts are all needed. Files as transformers has them are taken too."""
    parts = ["output-00001-of-00002.safetensors", "output-00002-of-00002.safetensors"]
    assert exl2_files("x", ["output.safetensors", "model.safetensors"]) == ["output.safetensors"]
    assert exl2_files("x", [*parts, "vision.safetensors"]) == parts
    assert exl2_files("x", ["model.safetensors"]) == ["model.safetensors"]
    with pytest.raises(CheckpointError, match="half a download"):
        exl2_files("x", parts[:1])
    with pytest.raises(ModelNotFound):
        exl2_files("x", [])


def test_files_of_exl3() -> None:
    """transformers' names; an index counts where all its files are there, else the parts go by their names."""
    assert exl3_files("x", ["model.safetensors", "other.safetensors"], ["other.safetensors"]) == ["model.safetensors"]
    assert exl3_files("x", [*PARTS, "vision-00001-of-00001.safetensors"], PARTS) == PARTS
    assert exl3_files("x", PARTS, ["model-00001-of-00009.safetensors"]) == PARTS
    assert exl3_files("x", PARTS, None) == PARTS
    for indexed in (PARTS, ["model-00001-of-00009.safetensors"], None):
        with pytest.raises(CheckpointError, match=rf"1 of 3 files are missing \({PARTS[1]}\)"):
            exl3_files("x", [PARTS[0], PARTS[2]], indexed)
    with pytest.raises(ModelNotFound):
        exl3_files("x", [], PARTS)
