"""What the tests of packed checkpoints share."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor


def write(directory: Path, tensors: dict[str, Tensor], quantization: object) -> None:
    """The files of a checkpoint anew."""
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "quantization_config": quantization}))
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
