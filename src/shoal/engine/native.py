"""A span's blocks on the compiled kernels: one native call takes a batch through all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Set
from ctypes import Array
from typing import Any

import msgspec
import torch
from torch import Tensor

from shoal.kv.cache import KVCache
from shoal.model.kernels import cpu
from shoal.model.kernels.panels import Panels, pack
from shoal.model.kernels.tiles import padded
from shoal.model.nn.block import BlockConfig
from shoal.model.nn.block_weights import BlockWeights
from shoal.model.nn.rope import Rope, RopeConfig
from shoal.protocol.rows import Rows

ACTIVATIONS = {"silu": 0, "gelu_pytorch_tanh": 1}
CACHE_KINDS = {"float32": 0, "bfloat16": 1, "float16": 2, "int8": 3, "int4": 4}
MAX_HEAD_DIM = 512
MAX_TURNINGS = 2
"""Kinds of rotary embedding that the blocks of one span may have."""

STRUCTURE = frozenset(
    {
        *("hidden_size", "num_heads", "num_kv_heads", "head_dim", "intermediate_size", "rope"),
        *("pre_norms", "post_norms", "qk_norm", "sinks"),
    }
)
"""What blocks tell the compiled kernels by their shapes, their angles and the vectors that they have."""

RESOLVED: dict[str, Callable[[BlockConfig], float]] = {
    "query_scale": lambda config: config.head_dim**-0.5 if config.query_scale is None else config.query_scale,
    "activation": lambda config: ACTIVATIONS[config.activation],
    "rotary_dim": lambda config: config.rotated_dim,
    "angles": lambda config: 0,  # which of a step's tables is known where the span's blocks come together
}
"""The kernels' numbers of a block that are not as its configuration has them."""


def supports(config: BlockConfig, numbers: Set[str] | None = None) -> bool:
    """Whether the compiled kernels know everything that such a block computes.

    They know the shapes and the `numbers` that they take (those of the library that is installed); in all else a block has to
    be as Llama's.
    """
    numbers = cpu.block_numbers() if numbers is None else numbers
    fields = {one.name: one.default for one in msgspec.structs.fields(config)}
    known = STRUCTURE | numbers
    return (
        numbers - RESOLVED.keys() <= fields.keys()
        and all(name in known or getattr(config, name) == default for name, default in fields.items())
        and config.qk_norm in ("", "head")
        and config.activation in ACTIVATIONS
        and config.head_dim <= MAX_HEAD_DIM
    )


class NativeBlock:
    """A block's packed matrices, norms and sinks; see `Panels.int8_rows`. Raises ValueError for a weight without a place."""

    def __init__(self, config: BlockConfig, weights: BlockWeights, int8_rows: bool = False) -> None:
        self.config = config
        self.digest = ""
        self._panels = dict(_packed(weights, int8_rows))
        self._vectors = dict(_vectors(weights))
        self.struct = cpu.block_struct()()
        self._linears = {name: cpu.linear_struct(panels) for name, panels in self._panels.items()}
        for name, linear in self._linears.items():
            setattr(self.struct, name, linear)
        for name, vector in self._vectors.items():
            setattr(self.struct, name, cpu.address(vector))
        for name in cpu.block_numbers():
            value = RESOLVED[name](config) if name in RESOLVED else getattr(config, name)
            setattr(self.struct, name, value)

    @property
    def size_bytes(self) -> int:
        """Memory that the matrices take."""
        return sum(panels.size_bytes for panels in self._panels.values())


MATRICES = {"qkv": ("q", "k", "v"), "output": ("o",), "gate": ("gate",), "up": ("up",), "down": ("down",)}
"""The roles that each of the kernels' matrices is made of."""


def _packed(weights: BlockWeights, int8_rows: bool) -> Iterator[tuple[str, Panels]]:
    left = weights.matrices.keys() - {f"{role}.weight" for roles in MATRICES.values() for role in roles}
    if left:
        raise ValueError(f"the compiled kernels have no place for {', '.join(sorted(left))}")
    for name, roles in MATRICES.items():
        biases = [bias for role in roles if (bias := weights.bias(role)) is not None]
        matrices = [weights.matrix(role) for role in roles]
        yield name, pack(matrices, torch.cat(biases) if biases else None, int8_rows)


def _vectors(weights: BlockWeights) -> Iterator[tuple[str, Tensor]]:
    """What is neither a matrix nor its bias, by the kernels' names."""
    fields = cpu.block_fields()
    for role, vector in weights.vectors.items():
        name = role.removesuffix(".weight")
        if role.endswith(".bias"):
            continue
        if fields.get(name) != "vector":
            raise ValueError(f"the compiled kernels have no place for {role}")
        yield name, vector.to(torch.float32).contiguous()


class NativeBlocks:
    """See `engine.blocks.Blocks`. `start` is the model's index of the first block. Not for two threads at once."""

    any_thread = True

    def __init__(
        self, config: BlockConfig, start: int, blocks: Sequence[NativeBlock], cache: KVCache, context: cpu.Context
    ) -> None:
        self.hidden_size = config.hidden_size
        self._start = start
        self._blocks = blocks
        self._cache = cache
        self._context = context
        self._pointers: dict[range, Array[Any]] = {}
        self._ropes: dict[tuple[RopeConfig, int], Rope] = {}
        for block in blocks:
            turning = (block.config.rope, block.config.rotated_dim)
            self._ropes.setdefault(turning, Rope(*turning))
            block.struct.angles = list(self._ropes).index(turning)
        if len(self._ropes) > MAX_TURNINGS:
            raise ValueError(f"blocks with {len(self._ropes)} kinds of rotary embedding")
        self._shape = cpu.ShapeStruct(
            config.hidden_size, config.num_heads, config.num_kv_heads, config.head_dim, config.intermediate_size
        )
        tensors = cache.storage.tensors
        addresses = (tensor.data_ptr() for tensor in tensors)
        self._pages = cpu.CacheStruct(
            *addresses,
            kind=CACHE_KINDS[cache.dtype],
            width=padded(config.head_dim),
            pages=tensors[0].shape[0],
            turning=cache.storage.turning,
        )

    def __len__(self) -> int:
        return len(self._blocks)

    def run(self, blocks: range, batch: Sequence[Rows]) -> list[Tensor]:
        counts = [rows.hidden_states.shape[0] for rows in batch]
        # A copy in any case: the kernels write over it.
        if len(batch) == 1:
            hidden = batch[0].hidden_states.clone(memory_format=torch.contiguous_format)
        else:
            hidden = torch.cat([rows.hidden_states for rows in batch])
        angles = [self._angles(rope, batch, counts) for rope in self._ropes.values()]
        parts, first = [], 0
        for rows, count in zip(batch, counts, strict=True):
            parts.append(self._part(blocks.start, rows, first, count))
            first += count
        self._context.step(
            self._shape,
            self._pointers_of(blocks),
            self._pages,
            parts,
            [cpu.AnglesStruct(cos.data_ptr(), sin.data_ptr()) for cos, sin in angles],
            hidden,
        )
        return [hidden] if len(batch) == 1 else list(torch.split(hidden, counts))

    def _pointers_of(self, blocks: range) -> Array[Any]:
        if blocks not in self._pointers:
            self._pointers[blocks] = cpu.block_pointers([self._blocks[block].struct for block in blocks])
        return self._pointers[blocks]

    def _angles(self, rope: Rope, batch: Sequence[Rows], counts: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Cosines and sines for all rows [n, pairs]."""
        each = [
            rope.slice(rows.position, count, self._cache.pages[rows.session].max_tokens)
            for rows, count in zip(batch, counts, strict=True)
        ]
        if len(each) == 1:
            return each[0]
        return torch.cat([cos for cos, _ in each]), torch.cat([sin for _, sin in each])

    def _part(self, block: int, rows: Rows, first: int, count: int) -> cpu.PartStruct:
        """Where a session's rows are: from `first` on in the batch, and in the cache."""
        pages = self._cache.pages[rows.session]
        pages_granted = pages.table.shape[1]
        return cpu.PartStruct(pages.address_of(self._start + block), pages_granted, rows.position, first, count, 0)
