"""SmolLM2-135M off the grid of its four bits: the same function, with channels in another order.

The files at hand are quantized already, and any format of as many bits would find their numbers again for nothing. One random
permutation of the residual channels, of each MLP's inner channels and of the channels within each value head changes no
output, and leaves no group of the grid together. `python -m bench.off_grid DIR` writes it as a directory of safetensors.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shoal.model.weights.checkpoint import Checkpoint
from shoal.model.weights.model_source import demo_model_path, open_checkpoint
from shoal.quantize.output_directory import write_tokenizer
from shoal.quantize.tensor_file import PendingTensor, write_pending

SEED = 17
_LAYER = re.compile(r"model\.layers\.(\d+)\.")


class Permutations:
    """Orders of the channels of a Llama, drawn from a seed."""

    def __init__(self, config: Mapping[str, Any], seed: int = SEED) -> None:
        generator = torch.Generator().manual_seed(seed)
        heads, self._kv_heads = int(config["num_attention_heads"]), int(config["num_key_value_heads"])
        self._dim: int = config.get("head_dim") or config["hidden_size"] // heads
        self._shared = heads // self._kv_heads
        self.residual = torch.randperm(config["hidden_size"], generator=generator)
        blocks = range(config["num_hidden_layers"])
        self.inner = [torch.randperm(config["intermediate_size"], generator=generator) for _ in blocks]
        self._within = [
            torch.stack([torch.randperm(self._dim, generator=generator) for _ in range(self._kv_heads)]) for _ in blocks
        ]

    def values(self, block: int) -> Tensor:
        """The order of v's outputs."""
        first = torch.arange(self._kv_heads)[:, None] * self._dim
        return (first + self._within[block]).flatten()

    def attended(self, block: int) -> Tensor:
        """The order of o's inputs: heads that share values have them in the same order."""
        within = self._within[block].repeat_interleave(self._shared, 0)
        return (torch.arange(len(within))[:, None] * self._dim + within).flatten()

    def apply(self, name: str, tensor: Tensor) -> Tensor:
        """A tensor of the model with its channels in these orders."""
        found = _LAYER.match(name)
        if found is None:
            return tensor[..., self.residual].contiguous()  # embedding, head, final norm
        block, kind = int(found[1]), name.split(".")[-2]
        outputs = {
            "v_proj": self.values(block),
            "gate_proj": self.inner[block],
            "up_proj": self.inner[block],
            "o_proj": self.residual,
            "down_proj": self.residual,
        }
        inputs = {"o_proj": self.attended(block), "down_proj": self.inner[block]}
        tensor = tensor[outputs[kind]] if kind in outputs else tensor
        return tensor[..., inputs.get(kind, self.residual)].contiguous()


def write_off_grid(folder: Path, source: Path | None = None, tokenizer: bool = True) -> Path:
    """The model in fp32 in a folder, with its tokenizer; raises ModelNotFound where SmolLM2-135M is not installed."""
    path = demo_model_path() if source is None else source
    checkpoint: Checkpoint = open_checkpoint(str(path))
    orders = Permutations(checkpoint.config)
    folder.mkdir(parents=True, exist_ok=True)
    write_pending(
        folder / "model.safetensors",
        [_pending(checkpoint, name, info.shape, orders) for name, info in checkpoint.tensors.items()],
    )
    if tokenizer:
        write_tokenizer(path, folder)
    (folder / "config.json").write_text(json.dumps(dict(checkpoint.config), indent=2))
    return folder


def _pending(checkpoint: Checkpoint, name: str, shape: tuple[int, ...], orders: Permutations) -> PendingTensor:
    return PendingTensor(name, torch.float32, shape, lambda: orders.apply(name, checkpoint.read(name).float()))


if __name__ == "__main__":
    write_off_grid(Path(sys.argv[1]))
