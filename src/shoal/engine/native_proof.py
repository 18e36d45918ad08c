"""Start-up proof for the compiled kernels.

They are exact by construction; a miscompiled library would not be. That they are right is compared with plain torch, for blocks
with all that the model's have.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import msgspec
import torch
from torch import Tensor

from shoal.engine.blocks import Blocks, TorchBlocks
from shoal.engine.native import NativeBlock, NativeBlocks
from shoal.engine.proof import PROBE_SEED, TILES, numbers
from shoal.errors import UsageError
from shoal.kv.cache import KVCache
from shoal.kv.pages import pages_for
from shoal.model.kernels import cpu
from shoal.model.nn.block import Block, BlockConfig, ModelConfig
from shoal.model.nn.block_weights import BlockWeights
from shoal.protocol.rows import Rows
from shoal.types import Span

ROWS = 150
CUTS = (1, 2, 5, 6, 7, 3, 1, 64, 20)
"""Rows in steps, for comparison with all in one: every height of the inner loops, pages crossed."""

FEW, NARROW = 40, 256
"""Rows that are compared with plain torch, and the most that such a block is wide."""

TOLERANCE = 1e-3
"""Of the outputs' length. Rounding makes 1e-6 of it; a number that is left out several percent."""

COMPARED_CACHES = ("float32", "int8")
"""Keys as they are, and turned ones; those of four bits are turned alike, and rounding tips more of their codes over."""

ONE = Span(0, 1)
_ENTRIES = 512
"""Weights of the canned block repeat after so many, so that it costs no time to draw them."""


def prove_native(blocks: Sequence[NativeBlock], model: ModelConfig, context: cpu.Context) -> tuple[bool, str]:
    """Whether rows are exact in one block of each kind, and a probe.

    The probe is 32 hexadecimal digits over a canned block of each kind that the model has, equal where machines give equal
    bits. Raises UsageError where the kernels compute something else than plain torch.
    """
    for config in model.distinct_blocks:
        _compare(_narrow(config), context)
    exact = all(_holds(block, context) for block in {block.config: block for block in blocks}.values())
    digest = hashlib.blake2b(digest_size=16)
    for config in model.distinct_blocks:
        digest.update(_native(NativeBlock(config, canned(config)), context, (FEW,)).numpy().tobytes())
    return exact, digest.hexdigest()


def _holds(block: NativeBlock, context: cpu.Context) -> bool:
    alone = cpu.Context(1)
    try:
        return torch.equal(_native(block, context, (ROWS,)), _native(block, alone, (*CUTS, ROWS - sum(CUTS))))
    finally:
        alone.close()


def _compare(config: BlockConfig, context: cpu.Context) -> None:
    """Raise UsageError unless a canned block of this form computes to rounding what plain torch computes."""
    weights = canned(config)
    native, block = NativeBlock(config, weights), Block(config, weights)
    for kv_dtype in COMPARED_CACHES:
        found = _native(native, context, (FEW,), kv_dtype)
        expected = _outputs(config, lambda cache: TorchBlocks(config, 0, [block], cache, TILES[0]), (FEW,), kv_dtype)
        if not (found - expected).norm() <= TOLERANCE * expected.norm():
            raise UsageError(
                "the compiled kernels compute something else than plain torch for this model's blocks: "
                f"install shoal-kernels anew, or set {cpu.VARIABLE}=torch to do without them"
            )


def _narrow(config: BlockConfig) -> BlockConfig:
    """A small block that does all that this one does."""
    return msgspec.structs.replace(
        config,
        hidden_size=min(config.hidden_size, NARROW),
        intermediate_size=min(config.intermediate_size, NARROW),
        num_heads=config.num_heads // config.num_kv_heads,
        num_kv_heads=1,
        window=min(config.window, FEW // 2),
    )


def _native(block: NativeBlock, context: cpu.Context, steps: Sequence[int], kv_dtype: str = "float32") -> Tensor:
    return _outputs(block.config, lambda cache: NativeBlocks(block.config, 0, [block], cache, context), steps, kv_dtype)


def _outputs(
    config: BlockConfig, make: Callable[[KVCache], Blocks], steps: Sequence[int], kv_dtype: str = "float32"
) -> Tensor:
    """Rows through one block, in steps of so many."""
    count = sum(steps)
    cache = KVCache(config.cache_shape, pages_for(count), kv_dtype)
    cache.open("probe", ONE, count)
    runner = make(cache)
    rows, outputs, at = numbers(PROBE_SEED, count, config.hidden_size), [], 0
    for step in steps:
        cache.grow("probe", at + step)
        outputs += runner.run(range(1), [Rows("probe", at, rows[at : at + step])])
        at += step
    return torch.cat(outputs)


def canned(config: BlockConfig, seed: int = 0, biases: bool = True) -> BlockWeights:
    """The same weights everywhere for a block of this form: everything that it may have."""
    drawn = numbers(PROBE_SEED + 5 + seed, _ENTRIES)
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    hidden, inner = config.hidden_size, config.intermediate_size
    shapes = {
        "q": (queries, hidden),
        "k": (keys, hidden),
        "v": (keys, hidden),
        "o": (hidden, queries),
        "gate": (inner, hidden),
        "up": (inner, hidden),
        "down": (hidden, inner),
    }
    widths = {f"{role}.bias": shape[0] for role, shape in shapes.items() if biases}
    norms = [
        *(("attention_norm", "mlp_norm") if config.pre_norms else ()),
        *(("post_attention_norm", "post_mlp_norm") if config.post_norms else ()),
    ]
    widths |= {f"{name}.weight": hidden for name in norms}
    widths |= {f"{name}.weight": config.head_dim for name in ("query_norm", "key_norm") if config.qk_norm}
    widths |= {"sinks": config.num_heads} if config.sinks else {}
    matrices = {f"{role}.weight": 2 * _filled(drawn, *shape) / shape[1] ** 0.5 for role, shape in shapes.items()}
    vectors = {name: _filled(drawn, width) / 4 + (1.0 if "norm" in name else 0.0) for name, width in widths.items()}
    return BlockWeights(matrices, vectors)


def _filled(drawn: Tensor, *shape: int) -> Tensor:
    """Numbers over and over again; 509 of them, a prime, so that rows do not repeat."""
    count = int(torch.Size(shape).numel())
    return drawn[: _ENTRIES - 3].repeat(-(-count // (_ENTRIES - 3)))[:count].view(shape)
