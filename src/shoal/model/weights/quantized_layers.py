"""Checkpoints whose linear layers are quantized one by one: EXL2, EXL3, GPTQ, AWQ and compressed-tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from shoal.errors import CheckpointError, UnsupportedModel
from shoal.model.families import family, model_config
from shoal.model.kernels.quantized import Matrix
from shoal.model.quant import awq, compressed_tensors, exl2, exl3, gptq
from shoal.model.quant.packed_matrix import PackedMatrix
from shoal.model.quant.stored_tensors import Stored
from shoal.model.weights.checkpoint import Checkpoint, TensorInfo
from shoal.model.weights.packed_checkpoint import PackedCheckpoint, PackedTensor, stored_as_is
from shoal.model.weights.safetensors import DTYPES

HEAD = "lm_head"
TIED = "tie_word_embeddings"

FLOAT_BYTES = 4
MOST_FILLED = 128
"""No method fills inputs or outputs up by so many."""


class LayerMatrix(Protocol):
    """What a layer is read as."""

    @property
    def shape(self) -> tuple[int, ...]:
        """[outputs, inputs]."""
        ...

    def dequantized(self) -> Tensor:
        """The weights [outputs, inputs] in floats; raises CheckpointError where they are none."""
        ...


class Method(NamedTuple):
    """How layers are stored: X.weight as X.`parts`, of which the first one is always there.

    `read` is told the shape that the configuration has. Where a method fills outputs up to multiples of `filled`, so it does
    with biases. `codes`: layers are had in the packed form.
    """

    name: str
    parts: tuple[str, ...]
    read: Callable[[Stored, str, tuple[int, ...]], LayerMatrix]
    filled: int = 1
    codes: bool = True


def is_in(config: Mapping[str, Any], kind: str) -> bool:
    """Whether a configuration says that a checkpoint is in "exl2" or "exl3", which have rules of their own about files."""
    given = config.get("quantization_config")
    return isinstance(given, Mapping) and given.get("quant_method") == kind


def method_of(checkpoint: Checkpoint) -> Method | None:
    """The method that a checkpoint's configuration names, if it is one of these; raises UnsupportedModel for a variant of
    it that is not read."""
    given = checkpoint.config.get("quantization_config")
    kind = given.get("quant_method") if isinstance(given, Mapping) else None
    if not isinstance(given, Mapping) or not isinstance(kind, str) or kind not in METHODS:
        return None
    try:
        return METHODS[kind](given)
    except UnsupportedModel as error:
        raise UnsupportedModel(f"{checkpoint.source}: {error}") from error


def with_quantized_layers(checkpoint: Checkpoint, method: Method) -> Checkpoint:
    """The checkpoint with these layers as matrices in floats. Raises CheckpointError for layers that the configuration
    does not have, or has in another shape."""
    layers = sorted(name.removesuffix(f".{method.parts[0]}") for name in checkpoint.tensors if _is_first(name, method))
    config = dict(checkpoint.config)
    if HEAD in layers:
        config[TIED] = False  # the head is a matrix of its own in such a file, whatever the model it was made from has
    shapes = _shapes(config)
    parts = {f"{layer}.{part}" for layer in layers for part in method.parts}
    tensors = {name: stored_as_is(name, info) for name, info in checkpoint.tensors.items() if name not in parts}
    for layer in layers:
        name = f"{layer}.weight"
        if len(shapes.get(name, ())) != 2:
            raise CheckpointError(f"{checkpoint.source}: {layer} is quantized; the configuration has no such matrix")
        tensors[name] = _packed(checkpoint, layer, shapes[name], method)
        bias = f"{layer}.bias"
        if bias in tensors and bias in shapes:
            tensors[bias] = _bias(bias, tensors[bias].info, shapes[bias], method)
    return PackedCheckpoint(checkpoint, tensors, config)


def _is_first(name: str, method: Method) -> bool:
    return name.endswith(f".{method.parts[0]}")


def _shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor that the model has."""
    described = model_config(config)
    its = family(described.model_type)
    wanted = [one for index in range(described.num_blocks) for one in its.block_tensors(described, index).values()]
    return {one.name: one.shape for one in (*wanted, *its.end_tensors(described).values())}


def _packed(checkpoint: Checkpoint, layer: str, shape: tuple[int, ...], method: Method) -> PackedTensor:
    names = tuple(f"{layer}.{part}" for part in method.parts if f"{layer}.{part}" in checkpoint.tensors)

    stored = sum(_size_bytes(checkpoint.tensors[part]) for part in names)
    if stored > FLOAT_BYTES * math.prod(size + MOST_FILLED for size in shape):
        raise CheckpointError(f"{checkpoint.source}: {layer} takes {stored} bytes, more than its floats would")

    def restore(parts: Sequence[Tensor]) -> Matrix:
        try:
            matrix = method.read(dict(zip(names, parts, strict=True)), layer, shape)
            if matrix.shape != shape:
                raise CheckpointError(
                    f"{layer} is a matrix of {list(matrix.shape)}; the configuration asks for {list(shape)}"
                )
            return matrix if isinstance(matrix, PackedMatrix) else matrix.dequantized()
        except CheckpointError as error:
            raise CheckpointError(f"{checkpoint.source}: {error}") from error

    return PackedTensor(TensorInfo(method.name, shape, codes=method.codes), names, restore)


def _size_bytes(info: TensorInfo) -> int:
    return DTYPES[info.dtype].itemsize * math.prod(info.shape)


def _bias(name: str, stored: TensorInfo, shape: tuple[int, ...], method: Method) -> PackedTensor:
    """A bias without what the method fills up; one of another shape stays as it is, and is refused where it is asked for."""
    filled = tuple(-(-size // method.filled) * method.filled for size in shape)
    if stored.shape == shape or stored.shape != filled:
        return stored_as_is(name, stored)
    return PackedTensor(TensorInfo(stored.dtype, shape), (name,), lambda parts: parts[0][: shape[0]])


def _exl2(config: Mapping[str, Any]) -> Method:
    return Method("EXL2", exl2.PARTS, lambda tensors, key, shape: exl2.read(tensors, key, shape[0]))


def _exl3(config: Mapping[str, Any]) -> Method:
    def read(tensors: Stored, key: str, shape: tuple[int, ...]) -> LayerMatrix:
        return exl3.read(tensors, key, *shape)

    return Method("EXL3", exl3.PARTS, read, exl3.ROTATION, codes=False)


def _gptq(config: Mapping[str, Any]) -> Method:
    form = gptq.gptq_form(config)
    return Method("GPTQ", gptq.PARTS, lambda tensors, key, shape: gptq.read(tensors, key, form))


def _awq(config: Mapping[str, Any]) -> Method:
    version, bits = config.get("version", "gemm"), config.get("bits", awq.BITS)
    if version != "gemm" or bits != awq.BITS:
        raise UnsupportedModel(f"AWQ weights of version {version!r} with {bits!r} bits are not read: gemm with 4 is")
    return Method("AWQ", awq.PARTS, lambda tensors, key, shape: awq.read(tensors, key))


def _compressed(config: Mapping[str, Any]) -> Method:
    form, parts = compressed_tensors.packed_form(config), compressed_tensors.PARTS
    return Method("compressed-tensors", parts, lambda tensors, key, shape: compressed_tensors.read(tensors, key, form))


METHODS: Mapping[str, Callable[[Mapping[str, Any]], Method]] = {
    "exl2": _exl2,
    "exl3": _exl3,
    "gptq": _gptq,
    "awq": _awq,
    "compressed-tensors": _compressed,
}
