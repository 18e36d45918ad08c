"""What every kind of checkpoint offers, whatever its files look like."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Protocol

import msgspec
from torch import Tensor

from shoal.model.kernels.quantized import Matrix
from shoal.model.nn.block import ModelConfig
from shoal.model.weights.quantization_note import QuantizationNote
from shoal.types import MAX_MODEL_NAME_CHARS, ModelSpec, plain

SAMPLED_TENSORS = 8
SAMPLE_BYTES = 1024

# What does not change the arithmetic: where a file was made, how it is sampled from, how it is stored.
_IGNORED_FIELDS = (
    "_name_or_path",
    "architectures",
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "pad_token_id",
    "torch_dtype",
    "transformers_weights",
    "transformers_version",
    "use_cache",
)


class TensorInfo(msgspec.Struct, frozen=True):
    """A tensor's stored dtype (as its format calls it) and its shape.

    `bits`: of one number where they are quantized, scales included; 0 for floats of 16 bits and more. `codes`: it is had as
    codes too (`Checkpoint.matrix`).
    """

    dtype: str
    shape: tuple[int, ...]
    bits: float = 0.0
    codes: bool = False


class Checkpoint(Protocol):
    """A model's files, read tensor by tensor. Names and configuration are those of HF transformers."""

    @property
    def source(self) -> str:
        """What the user asked for: a hub id, a directory or a file."""
        ...

    @property
    def name(self) -> str:
        """The model's short public name."""
        ...

    @property
    def revision(self) -> str:
        """The hub's commit, or empty."""
        ...

    @property
    def config(self) -> Mapping[str, Any]:
        """The layout of HF's config.json."""
        ...

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor by its HF name."""
        ...

    @property
    def note(self) -> QuantizationNote:
        """What the program that quantized it wrote beside it, if it was ours."""
        ...

    @property
    def bytes_read(self) -> int:
        """Bytes of headers and tensors read so far."""
        ...

    def read(self, name: str) -> Tensor:
        """One tensor on the CPU, in its stored float dtype, or fp32 where it was quantized.

        Raises CheckpointError for a name that is not there or data that cannot be right.
        """
        ...

    def matrix(self, name: str) -> Matrix:
        """The same, but the codes of a matrix that is stored as such."""
        return self.read(name)

    def sample(self, name: str, size_bytes: int) -> bytes:
        """The first bytes of a tensor as they are stored."""
        ...


def model_spec(checkpoint: Checkpoint, config: ModelConfig) -> ModelSpec:
    """What identifies the model that these files hold. `config` is what its family makes of their configuration."""
    name = plain(checkpoint.name, MAX_MODEL_NAME_CHARS)
    return ModelSpec(name, fingerprint(checkpoint), config.num_blocks, config.block.hidden_size)


def fingerprint(checkpoint: Checkpoint) -> str:
    """32 hexadecimal digits for the base checkpoint: configuration, tensors' names, dtypes and shapes, and a few samples.

    The samples (1 KiB of eight tensors, evenly chosen by name) tell a fine-tune from its base without reading it whole. What
    our own quantizer made has its base's fingerprint, by its note.
    """
    if checkpoint.note.base_fingerprint:
        return checkpoint.note.base_fingerprint
    fields = {key: value for key, value in checkpoint.config.items() if key not in _IGNORED_FIELDS}
    digest = hashlib.blake2b(json.dumps(fields, sort_keys=True, default=str).encode(), digest_size=16)
    names = sorted(checkpoint.tensors)
    for name in names:
        info = checkpoint.tensors[name]
        digest.update(f"{name} {info.dtype} {list(info.shape)}\n".encode())
    for name in names[:: max(1, len(names) // SAMPLED_TENSORS)][:SAMPLED_TENSORS]:
        digest.update(checkpoint.sample(name, SAMPLE_BYTES))
    return digest.hexdigest()
