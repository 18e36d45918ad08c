"""What the tests of packed checkpoints share."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from shoal.model.families import model_config
from shoal.model.weights.block_loading import load_blocks
from shoal.model.weights.model_source import open_checkpoint
from shoal.types import Span


def write(directory: Path, tensors: dict[str, Tensor], quantization: object) -> None:
    """The files of a checkpoint anew."""
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "quantization_config": quantization}))
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def write_plain(packed: Path, tensors: dict[str, Tensor]) -> Path:
    """A checkpoint like `packed`, beside it, that is not quantized."""
    plain = packed.parent / f"{packed.name}-plain"
    plain.mkdir()
    (plain / "config.json").write_text((packed / "config.json").read_text())
    write(plain, tensors, None)
    return plain


def block_costs_its_bytes(packed: Path) -> bool:
    """Whether loading one block reads its tensors as they are stored, each once, and nothing else."""
    checkpoint = open_checkpoint(str(packed))
    config, before = model_config(checkpoint.config), checkpoint.bytes_read
    load_blocks(checkpoint, config, Span(1, 2))
    tensors = {name: one for name, one in load_file(packed / "model.safetensors").items() if "layers.1." in name}
    return checkpoint.bytes_read - before == sum(tensor.nbytes for tensor in tensors.values())
