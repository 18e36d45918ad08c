"""Blocks and ends from a checkpoint: only their tensors are read."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from shoal.errors import CheckpointError, UsageError
from shoal.model.families import TensorMap, TensorSource, family
from shoal.model.kernels import cpu
from shoal.model.kernels.linears import MakeLinear, torch_linear
from shoal.model.kernels.quantized import BITS, GROUP, Matrix, quantize
from shoal.model.nn.block import Block, BlockConfig, EmbeddingAndHead, ModelConfig, final_norm
from shoal.model.nn.block_weights import BlockWeights
from shoal.model.quant.output_changes import outputs_changed
from shoal.model.quant.packed_matrix import PackedMatrix
from shoal.model.weights.checkpoint import Checkpoint
from shoal.types import Span

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SCALE_BITS = 4
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

Progress = Callable[[int, int], None]


class WeightFormat(NamedTuple):
    """What matrices are rounded to: a dtype, or codes of `bits`. Norms, biases and routers stay in fp32.

    `keep`: matrices that are stored as codes stay as they are.
    """

    dtype: torch.dtype = torch.float32
    bits: int | None = None
    keep: bool = False

    def keeps(self, role: str) -> bool:
        """Whether codes that are stored are kept for this role."""
        return self.keep and self.bits is None and not role.startswith("router") and role not in UNQUANTIZED

    def apply(self, role: str, tensor: Matrix, device: str) -> Matrix:
        """A tensor of this role in this form, on a device."""
        if isinstance(tensor, PackedMatrix):
            return tensor.to(device)
        floats = self._floats(role, tensor.ndim)
        if self.bits is None or floats is not None:
            return tensor.to(floats or self.dtype).to(device)  # in this order: not every device has fp64
        # Rounded on the CPU, so that servers with and without a device hold the same.
        return quantize(tensor, self.bits).to(device)

    def _floats(self, role: str, dimensions: int) -> torch.dtype | None:
        """The floats in which a tensor of this role stays, whatever others are rounded to; None where it is rounded too."""
        if dimensions < 2 or role.startswith("router"):
            return torch.float32
        return self.dtype if self.bits is None or role in UNQUANTIZED else None

    def bits_of(self, role: str, shape: Sequence[int]) -> int:
        """The bits that `apply` makes of a tensor of this role and shape, scales included."""
        floats = self._floats(role, len(shape))
        if self.bits is None or floats is not None:
            return 8 * (floats or self.dtype).itemsize * math.prod(shape)
        outputs, inputs = shape
        return outputs * (self.bits * inputs + SCALE_BITS * -(-inputs // GROUP))

    @property
    def bits_per_weight(self) -> float:
        """Bits that a weight takes, its share of a scale included."""
        return 8.0 * self.dtype.itemsize if self.bits is None else self.bits + SCALE_BITS / GROUP


FULL = WeightFormat()

UNQUANTIZED = ("kv_b.weight",)
"""DeepSeek's second half of the latent projection is taken apart by head and stays in floats."""


AUTO = "auto"


def own_dtype(checkpoint: Checkpoint) -> str:
    """What keeps a checkpoint's floats as they are: bfloat16 where all matrices are stored so, else float32."""
    kinds = {info.dtype for info in checkpoint.tensors.values() if len(info.shape) >= 2 and not info.codes}
    return "bfloat16" if kinds == {"BF16"} else "float32"


def weight_format(dtype: str, bits: int | None = None, checkpoint: Checkpoint | None = None) -> WeightFormat:
    """The form of a `--dtype` ("auto": the checkpoint's own) and a `--quantize`; raises UsageError."""
    keep = dtype == AUTO and bits is None and cpu.available()  # plain torch would take a byte for each code
    dtype = own_dtype(checkpoint) if dtype == AUTO and checkpoint is not None else dtype
    if dtype not in DTYPES:
        raise UsageError(f"there is no dtype {dtype!r}: choose one of {', '.join(DTYPES)}")
    if bits is not None and bits not in BITS:
        raise UsageError(f"weights cannot be quantized to {bits} bits: choose one of {', '.join(map(str, BITS))}")
    return WeightFormat(DTYPES[dtype], bits, keep)


def _read(checkpoint: Checkpoint, shapes: TensorMap, form: WeightFormat, device: str = "cpu") -> BlockWeights:
    """Tensors by role. Shapes are checked before anything is read; norms, biases and routers stay in fp32."""
    roles: dict[str, list[str]] = {}
    for role, stored in shapes.items():
        roles.setdefault(stored_name(checkpoint, stored), []).append(role)
    read: dict[str, Matrix] = {}
    for name, parts in roles.items():  # a fused tensor is read once
        tensor = checkpoint.matrix(name) if any(map(form.keeps, parts)) else checkpoint.read(name)
        if tensor.dtype not in FLOATS:
            raise CheckpointError(f"{checkpoint.source}: tensor {name} holds {tensor.dtype}, not floats")
        for role in parts:
            read[role] = form.apply(role, _taken(tensor, shapes[role].take, form.keeps(role)), device)
    return BlockWeights.of(read)


def _taken(tensor: Matrix, take: Callable[[Tensor], Tensor] | None, keep: bool) -> Matrix:
    """What a role takes of a stored tensor; as codes where it is to be kept so and takes outputs alone."""
    if not isinstance(tensor, PackedMatrix):
        return tensor if take is None else take(tensor)
    if keep and (kept := tensor if take is None else outputs_changed(tensor, take)) is not None:
        return kept
    floats = tensor.dequantized()
    return floats if take is None else take(floats)


def stored_name(checkpoint: Checkpoint, stored: TensorSource) -> str:
    """The tensor's name in this checkpoint, which may lack the model's prefix ("transformer."); raises CheckpointError."""
    for name in (stored.name, stored.name.partition(".")[2]):
        info = checkpoint.tensors.get(name)
        if info is not None and info.shape != stored.shape:
            raise CheckpointError(
                f"{checkpoint.source}: tensor {name} has shape {list(info.shape)}; "
                f"the configuration asks for {list(stored.shape)}"
            )
        if info is not None:
            return name
    raise CheckpointError(f"{checkpoint.source} has no tensor {stored.name}")


class LoadedBlock(Protocol):
    """A block as some engine holds it."""

    digest: str

    @property
    def size_bytes(self) -> int:
        """Memory that its matrices take."""
        ...


B = TypeVar("B", bound=LoadedBlock)


def load_blocks(
    checkpoint: Checkpoint,
    config: ModelConfig,
    span: Span,
    form: WeightFormat | str = FULL,
    progress: Progress | None = None,
    device: str = "cpu",
    build: Callable[[BlockConfig, BlockWeights], B] = Block,  # type: ignore[assignment]  # the default's own type
) -> list[B]:
    """The blocks of a span on a device, built one after the other; `progress` hears of each (done, all).

    `form` is what their matrices are rounded to, or a dtype's name.

    Raises CheckpointError naming the tensor that is missing or wrong, SpanError for blocks outside the model.
    """
    span.check(config.num_blocks)
    described, form = family(config.model_type), weight_format(form) if isinstance(form, str) else form
    blocks = []
    for index in span.blocks():
        weights = _read(checkpoint, described.block_tensors(config, index), form, device)
        block = build(config.block_config(index), weights)
        block.digest = _digest(weights)
        blocks.append(block)
        if progress is not None:
            progress(len(blocks), len(span))
    return blocks


def fetch_blocks(checkpoint: Checkpoint, config: ModelConfig, span: Span) -> None:
    """Read a span's tensors and drop them: those of the hub are kept on this machine's disk by that.

    Raises what reading them raises.
    """
    for index in span.blocks():
        shapes = family(config.model_type).block_tensors(config, index)
        for name in dict.fromkeys(stored_name(checkpoint, stored) for stored in shapes.values()):
            checkpoint.read(name)


def load_ends(
    checkpoint: Checkpoint, config: ModelConfig, form: WeightFormat | str = FULL, make: MakeLinear = torch_linear
) -> EmbeddingAndHead:
    """Embedding, final norm and head, in a form or (its name) a dtype.

    Raises CheckpointError naming the tensor that is missing or wrong.
    """
    form = weight_format(form) if isinstance(form, str) else form
    weights = _read(checkpoint, family(config.model_type).end_tensors(config), form)
    head = make(weights.matrix("embedding" if config.tied_head else "head"), None)
    embedding = None if config.tied_head else weights.floats("embedding")
    norm = final_norm(config.block, weights)
    first = final_norm(config.block, weights, "embedding_norm") if config.embedding_norm else None
    return EmbeddingAndHead(config, embedding, norm, head, first)


def block_digests(blocks: Sequence[LoadedBlock]) -> tuple[str, ...]:
    """16 hexadecimal digits for each block over its weights."""
    return tuple(block.digest for block in blocks)


def _digest(weights: BlockWeights) -> str:
    """16 hexadecimal digits over a block's weights as they are rounded, whatever order an engine brings them into."""
    digest = hashlib.blake2b(digest_size=8)
    for role, matrix in sorted(weights.matrices.items()):
        digest.update(role.encode())
        for tensor in matrix.parts if isinstance(matrix, PackedMatrix) else (matrix,):
            digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy().data)
    for role, vector in sorted(weights.vectors.items()):
        digest.update(role.encode())
        digest.update(vector.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
