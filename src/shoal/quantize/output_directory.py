"""The directory that comes out: an EXL2 checkpoint as ExLlama lays it out, made from the files of blocks and head."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shoal.errors import CheckpointError
from shoal.files import replace_file, sync_folder
from shoal.model.weights.byte_source import LocalFile
from shoal.model.weights.checkpoint import Checkpoint
from shoal.model.weights.gguf import GgufCheckpoint
from shoal.model.weights.hub import cached_folder
from shoal.model.weights.quantized_layers import HEAD
from shoal.model.weights.safetensors import DTYPES, SafetensorsFile
from shoal.model.weights.tokenizer_conversion import convert
from shoal.quantize.source_model import SourceModel
from shoal.quantize.tensor_file import PendingTensor, shards, write_pending

VERSION = "0.3.2"
"""The version of ExLlamaV2 whose layout it is."""

MAX_SHARD_BYTES = 8192 << 20
MAX_HALF = 65504.0
LEFT_OUT = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx", ".index.json")
"""Of the source's files: weights, and indexes of such."""

_BLOCK = re.compile(r"\.(?:layers|h)\.(\d+)\.")


def write_weights(model: SourceModel, parts: Iterable[Path], folder: Path, most_bytes: int = MAX_SHARD_BYTES) -> None:
    """`output.safetensors`, or its shards: the tensors of the parts, and all others of the source in fp16.

    Raises CheckpointError for a number that fp16 does not have.
    """
    packed = list(_packed(parts))
    files = shards(sorted([*packed, *_floats(model, packed)], key=lambda one: _place(one.name)), most_bytes)
    for number, tensors in enumerate(files, 1):
        name = "output" if len(files) == 1 else f"output-{number:05}-of-{len(files):05}"
        write_pending(folder / f"{name}.safetensors", tensors)


def _packed(parts: Iterable[Path]) -> Iterator[PendingTensor]:
    for path in parts:
        file = SafetensorsFile(LocalFile(path))
        for name, entry in file.entries.items():
            yield PendingTensor(name, DTYPES[entry.info.dtype], entry.info.shape, _reading(file, name))


def _reading(file: SafetensorsFile, name: str) -> Callable[[], Tensor]:
    return lambda: file.read(name)


def _floats(model: SourceModel, packed: Iterable[PendingTensor]) -> Iterator[PendingTensor]:
    """The source's tensors that are not among the packed ones; of a tied head nothing is left, since it is packed."""
    names = {one.name.rpartition(".")[0] for one in packed if one.name.endswith(".q_weight")}
    replaced = {f"{name}.weight" for name in names}
    if model.config.tied_head:
        replaced.add(f"{HEAD}.weight")
    for name, info in model.checkpoint.tensors.items():
        if name not in replaced:
            yield PendingTensor(name, torch.float16, info.shape, _in_half(model.checkpoint, name))


def _in_half(checkpoint: Checkpoint, name: str) -> Callable[[], Tensor]:
    def read() -> Tensor:
        tensor = checkpoint.read(name)
        if tensor.numel() and not bool(tensor.abs().max() <= MAX_HALF):
            raise CheckpointError(f"{checkpoint.source}: {name} has numbers that fp16 cannot hold")
        return tensor.to(torch.float16)

    return read


def _place(name: str) -> tuple[int, int, str]:
    """The order of a model: embedding, blocks, norm, head."""
    block = _BLOCK.search(name)
    if block is not None:
        return 1, int(block[1]), name
    return (3 if name.startswith(HEAD) else 0 if "embed" in name or "wte" in name else 2), 0, name


def write_config(model: SourceModel, folder: Path, entry: Mapping[str, Any]) -> None:
    """config.json: the source's, with what says how the weights are quantized."""
    config = {key: value for key, value in model.checkpoint.config.items() if key != "transformers_weights"}
    text = json.dumps({**config, "quantization_config": dict(entry)}, indent=4, default=str)
    replace_file(folder / "config.json", text.encode(), sync=True)


def copy_other_files(checkpoint: Checkpoint, folder: Path) -> None:
    """The source's tokenizer and whatever else lies beside its weights."""
    if isinstance(checkpoint, GgufCheckpoint):
        write_tokenizer(Path(checkpoint.source), folder)
        return
    path = Path(checkpoint.source).expanduser()
    source = path if path.is_dir() else cached_folder(checkpoint.source, checkpoint.revision)
    for file in sorted(source.glob("*")) if source is not None else ():
        if file.is_file() and file.name != "config.json" and not file.name.endswith(LEFT_OUT):
            shutil.copyfile(file, folder / file.name)
    templates = "additional_chat_templates"
    if source is not None and (source / templates).is_dir():
        shutil.copytree(source / templates, folder / templates, dirs_exist_ok=True)


def write_tokenizer(gguf: Path, folder: Path) -> None:
    """A GGUF file's tokenizer in files as transformers has them."""
    data = convert(str(gguf.parent), gguf_file=gguf.name)
    replace_file(folder / "tokenizer.json", bytes(data.tokenizer))
    described: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", **data.special_tokens}
    if data.chat_templates:
        described["chat_template"] = data.chat_templates.get("default", "")
    replace_file(folder / "tokenizer_config.json", json.dumps(described, indent=2).encode())


def publish(made: Path, wanted: Path) -> None:
    """Give a directory that is whole its name; files in it can be read by others as new files can."""
    mask = os.umask(0)
    os.umask(mask)
    for file in made.rglob("*"):
        if file.is_file():
            file.chmod(0o666 & ~mask)
    sync_folder(made)
    os.rename(made, wanted)
    sync_folder(wanted.parent)
