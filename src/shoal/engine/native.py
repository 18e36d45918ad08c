"""A span's blocks for the compiled kernels: one native call takes a batch through all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from shoal.engine.blocks import Part
from shoal.kernels import cpu
from shoal.kernels.panels import Panels, pack
from shoal.kernels.quantized import Quantized, concatenated
from shoal.kernels.tiles import padded
from shoal.kv.cache import KVCache
from shoal.nn.block import BlockConfig
from shoal.nn.rope import Rope

ACTIVATIONS = {"silu": 0, "gelu_pytorch_tanh": 1}
CACHE_KINDS = {"float32": 0, "bfloat16": 1, "float16": 2, "int8": 3, "int4": 4}
MAX_HEAD_DIM = 512

Weights = Mapping[str, Tensor | Quantized]


def supports(config: BlockConfig) -> bool:
    """Whether the compiled kernels know everything that such blocks do."""
    return config.activation in ACTIVATIONS and config.head_dim <= MAX_HEAD_DIM


class NativeBlock:
    """A block's packed matrices and norms, by role as in `nn.block.Block`."""

    def __init__(self, config: BlockConfig, weights: Weights) -> None:
        self.config = config
        self.digest = ""
        qkv = concatenated([weights[f"{part}.weight"] for part in "qkv"])
        biases = [weights[f"{part}.bias"] for part in "qkv" if f"{part}.bias" in weights]
        self._panels = {
            "qkv": pack(qkv, torch.cat(biases) if biases else None),
            **{name: pack(weights[f"{role}.weight"], weights.get(f"{role}.bias")) for name, role in _MATRICES.items()},
        }
        self._norms = {name: weights[f"{name}.weight"].to(torch.float32).contiguous() for name in _NORMS}
        self.struct = self._struct()

    def _struct(self) -> cpu.BlockStruct:
        config = self.config
        struct = cpu.BlockStruct()
        for name, panels in self._panels.items():
            setattr(struct, name, cpu.linear_struct(panels))
        for name, norm in self._norms.items():
            setattr(struct, name, cpu.address(norm))
        struct.norm_eps = config.norm_eps
        struct.query_scale = config.head_dim**-0.5
        struct.activation = ACTIVATIONS[config.activation]
        struct.rotary_dim = config.head_dim
        return struct

    @property
    def size_bytes(self) -> int:
        """Memory that the matrices take."""
        return sum(panels.size_bytes for panels in self._panels.values())


_MATRICES = {"output": "o", "gate": "gate", "up": "up", "down": "down"}
_NORMS = ("attention_norm", "mlp_norm")


class NativeBlocks:
    """See `engine.blocks.Blocks`. Not for two threads at once; `close` ends the kernels' threads."""

    def __init__(
        self, config: BlockConfig, start: int, blocks: Sequence[NativeBlock], cache: KVCache, context: cpu.Context
    ) -> None:
        self.hidden_size = config.hidden_size
        self._start = start
        self._blocks = blocks
        self._cache = cache
        self._context = context
        self._rope = Rope(config.rope, config.head_dim)
        self._shape = cpu.ShapeStruct(
            config.hidden_size, config.num_heads, config.num_kv_heads, config.head_dim, config.intermediate_size
        )
        self._pages = cpu.CacheStruct(*map(cpu.address, _four(cache.storage.tensors)))
        self._pages.kind = CACHE_KINDS[cache.dtype]
        self._pages.width = padded(config.head_dim)

    def __len__(self) -> int:
        return len(self._blocks)

    def run(self, blocks: range, rows: Tensor, parts: Sequence[Part]) -> Tensor:
        """See `engine.blocks.Blocks`."""
        positions = torch.cat([torch.arange(part.position, part.position + part.num_rows) for part in parts])
        cos, sin = self._rope.angles(positions)
        rows = rows.clone(memory_format=torch.contiguous_format)
        self._context.step(
            self._shape,
            [self._blocks[block].struct for block in blocks],
            self._pages,
            [self._part(blocks.start, part) for part in parts],
            [cpu.AnglesStruct(cos.data_ptr(), sin.data_ptr())],
            rows,
        )
        return rows

    def _part(self, block: int, part: Part) -> cpu.PartStruct:
        pages = self._cache.pages[part.session]
        row = pages.table[self._start + block - pages.span.start :]
        return cpu.PartStruct(row.ctypes.data, row.shape[1], part.position, part.first, part.num_rows, 0)


def _four(tensors: Sequence[Tensor]) -> Sequence[Tensor | None]:
    return [*tensors, *([None] * (4 - len(tensors)))]
