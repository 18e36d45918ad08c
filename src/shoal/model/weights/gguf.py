"""GGUF checkpoints: tensors by the names and in the layout that transformers has."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from shoal.errors import CheckpointError
from shoal.model.families import TensorSource, gguf_family, model_config
from shoal.model.families.gguf_mapping import GgufPiece
from shoal.model.kernels.quantized import Matrix
from shoal.model.quant.output_changes import outputs_changed
from shoal.model.quant.packed_matrix import PackedMatrix
from shoal.model.weights.byte_source import ByteSource
from shoal.model.weights.checkpoint import TensorInfo
from shoal.model.weights.gguf_file import GgufFile
from shoal.model.weights.quantization_note import NO_NOTE

MAX_WANTED = 1 << 17
"""Tensors that a model may have, each expert's counted: those of DeepSeek V3 are some 50,000."""


class GgufCheckpoint:
    """A GGUF file, or all parts of one, of an architecture that a family here stands for."""

    def __init__(self, source: str, *parts: ByteSource) -> None:
        self.source = source
        self.revision = ""
        self.note = NO_NOTE
        self._file = GgufFile(*parts)
        self.name = str(self._file.metadata.get("general.name") or source.rpartition("/")[2])[:100]
        self._family, self._mapping = gguf_family(self._file)
        fields = self._mapping.hf_config(self._file)
        self.config: Mapping[str, Any] = {"model_type": self._family.model_type, **fields}
        self._pieces: dict[str, GgufPiece] = {}
        self.tensors: dict[str, TensorInfo] = {}
        for count, stored in enumerate(self._wanted()):
            if count == MAX_WANTED:
                raise CheckpointError(f"{source} claims a model of more than {MAX_WANTED} tensors")
            self._add(stored)
        self._mapping.check(self._file)

    def _wanted(self) -> Iterator[TensorSource]:
        """Every tensor that the model has according to its configuration."""
        config = model_config(self.config)
        for index in range(config.num_blocks):
            yield from self._family.block_tensors(config, index).values()
        yield from self._family.end_tensors(config).values()

    def _add(self, stored: TensorSource) -> None:
        """Remember where a tensor is; one that is missing in the file is missing here."""
        found = self._mapping.find(self._file, self.config, stored.name)
        if found is not None:
            shapes = [self._file.shape(name)[found.expert is not None :] for name in found.names]
            if sum(map(math.prod, shapes)) != math.prod(stored.shape):
                raise CheckpointError(
                    f"{self.source}: {', '.join(found.names)} of shape {shapes} cannot be {stored.name} of "
                    f"{list(stored.shape)}, which the configuration asks for"
                )
            self._pieces[stored.name] = found
            info = self._file.info(found.names[0])
            codes = info.codes and len(found.names) == 1 and len(stored.shape) == 2
            self.tensors[stored.name] = TensorInfo(info.dtype, stored.shape, info.bits, codes)

    @property
    def bytes_read(self) -> int:
        """Checkpoint: bytes of headers and tensors read so far."""
        return self._file.bytes_read

    def header_digest(self) -> str:
        """32 hexadecimal digits over the file's header: metadata with the vocabulary, and the tensors' names and shapes."""
        return hashlib.blake2b(self._file.header(), digest_size=16).hexdigest()

    def _piece(self, name: str) -> GgufPiece:
        if name not in self._pieces:
            raise CheckpointError(f"{self.source} has no tensor {name}")
        return self._pieces[name]

    def read(self, name: str) -> Tensor:
        """Checkpoint: one tensor in fp32, in HF's layout."""
        matrix = self.matrix(name)
        return matrix.dequantized() if isinstance(matrix, PackedMatrix) else matrix

    def matrix(self, name: str) -> Matrix:
        """Checkpoint: the same, but codes where only their outputs lie in another order."""
        found, shape = self._piece(name), self.tensors[name].shape
        parts = [self._file.matrix(part, found.expert) for part in found.names]
        restore = found.restore
        if len(parts) == 1 and isinstance(parts[0], PackedMatrix):
            kept = parts[0] if restore is None else outputs_changed(parts[0], lambda one: restore([one]))
            if kept is not None and kept.shape == shape:
                return kept
        return self._restored(
            name, found, [part.dequantized() if isinstance(part, PackedMatrix) else part for part in parts]
        )

    def _restored(self, name: str, found: GgufPiece, parts: list[Tensor]) -> Tensor:
        shape = self.tensors[name].shape
        try:
            tensor = found.restore(parts) if found.restore is not None else parts[0]
        except (RuntimeError, ValueError) as error:  # a view that the parts' shapes do not allow
            raise CheckpointError(f"{self.source}: {', '.join(found.names)} cannot become {name}: {error}") from error
        if tuple(tensor.shape) != shape:
            raise CheckpointError(
                f"{self.source}: tensor {name} has shape {list(tensor.shape)}; the configuration asks for {list(shape)}"
            )
        return tensor

    def sample(self, name: str, size_bytes: int) -> bytes:
        """Checkpoint: the first bytes of a tensor as they are stored."""
        return self._file.sample(self._piece(name).names[0], size_bytes)
