"""Start-up proof: does this machine's BLAS keep rows exact on the model's own shapes, and with which tile?

Measured beforehand in docs/decisions/0003-row-exact-torch.md; what was measured on one machine is a guess on the next.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
import torch
from torch import Tensor

from shoal.kv.pages import PAGE_TOKENS
from shoal.model.kernels.linears import RowLinear
from shoal.model.kernels.native_linear import NativeLinear
from shoal.model.kernels.tiles import exp_, pad_rows, padded, row_sum, softcap_
from shoal.model.nn.alibi import alibi_slopes
from shoal.model.nn.attention import AttentionForm, paged_attention
from shoal.model.nn.block import HEAD_ROWS, Block, BlockConfig, EmbeddingAndHead, ModelConfig
from shoal.model.nn.layers import ACTIVATIONS
from shoal.model.nn.moe import Experts
from shoal.model.nn.rope import Rope
from shoal.model.nn.sdpa import Attention, may_be_exact

TILES = (4, 8, 16, 32, 64)
HEIGHTS = (1, 2, 3, 5, 8, 13, 31, 64, 100, 129, 513)
"""Rows that are computed together; 512 is the most that a step has."""

HEAD_HEIGHTS = (1, 2, 3, 5, 8, 13, 31, HEAD_ROWS)
"""The same for the head, which takes no more at once."""

WATCHED = (0, 1, 2, 4, 9, 30, 63, 99, 128, 511)
"""Rows that are computed alone as well."""

PROBE_SEED = 20_240_617
PROBE_FEATURES = 256
PROBE_POSITIONS = 8192

Compute = Callable[[Tensor], Tensor]


class Proof(msgspec.Struct, frozen=True):
    """What held: `exact` for this tile and thread count; `probe` is a hash of canned arithmetic."""

    kernel: str
    tile: int
    threads: int
    exact: bool
    probe: str


class Tiling(NamedTuple):
    """A tile and torch's thread count, and whether rows are `exact` with them."""

    tile: int
    threads: int
    exact: bool


class ExecutionEnv(NamedTuple):
    """What blocks run in: a device, what attends there, and the floats in which it finds keys and values."""

    device: str = "cpu"
    attention: Attention = paged_attention
    kv_dtype: torch.dtype = torch.float32


CPU = ExecutionEnv()


def numbers(seed: int, *shape: int) -> Tensor:
    """The same fp32 numbers everywhere, between −1 and 1: 21 bits each of Philox's raw output (counter-based)."""
    raw = np.random.Philox(key=seed).random_raw(math.prod(shape))
    centred = (raw >> np.uint64(43)).astype(np.int64) - 2**20
    return torch.from_numpy((centred / 2**20).astype(np.float32).reshape(shape))


def prove(blocks: Sequence[Block], model: ModelConfig, setting: ExecutionEnv = CPU) -> Proof:
    """Find the smallest tile that keeps rows exact in one block of each kind, with the present threads, else with one thread.

    The thread count that was found is set. If nothing holds, the result says `exact=False`, with one thread and the
    largest tile; on a device, where no threads compute and rows need not be filled up, with the present ones and a tile of 1.
    The probe is over all kinds that the model has, so that servers of different blocks can compare it.
    """
    each = {block.config: block for block in blocks}.values()

    def holds(tile: int, threads: int) -> bool:
        return all(block_holds(one, tile, threads, setting) for one in each)

    found = _search(holds, setting.device)
    with torch.inference_mode():
        return Proof("torch", *found, probe(model.distinct_blocks, found.tile, setting))


def prove_ends(ends: EmbeddingAndHead, config: BlockConfig) -> Tiling:
    """The same for the final norm and the head, without the probe."""

    def holds(tile: int, threads: int) -> bool:
        rows = numbers(PROBE_SEED, HEAD_HEIGHTS[-1] + 1, config.hidden_size)
        return _rows_hold(lambda some: ends.logits(some, tile), rows, tile, threads, HEAD_HEIGHTS)

    tiles = (1, *TILES) if isinstance(ends.head, NativeLinear) else TILES
    return _search(holds, tiles=tiles)


def _search(holds: Callable[[int, int], bool], device: str = "cpu", tiles: Sequence[int] = TILES) -> Tiling:
    """The first that holds; its thread count is set."""
    here = torch.get_num_threads()
    fewest, last_tile = (1, TILES[-1]) if device == "cpu" else (here, 1)
    with torch.inference_mode():
        for threads in dict.fromkeys((here, fewest)):
            for tile in tiles:
                if holds(tile, threads):
                    return Tiling(tile, threads, True)
    torch.set_num_threads(fewest)
    return Tiling(last_tile, fewest, False)


def block_holds(block: Block, tile: int, threads: int, setting: ExecutionEnv = CPU) -> bool:
    """Whether rows come out the same alone and in company, at any place, with one thread and with `threads`."""
    config = block.config

    def compute(rows: Tensor) -> Tensor:
        # Any angle will do: the rotation is elementwise.
        angles = rows.new_full((2, rows.shape[0], config.rotated_dim // 2), 0.6)
        return block(rows, (angles[0], angles[1]), _mix, tile)

    rows = numbers(PROBE_SEED, HEIGHTS[-1] + 1, config.hidden_size).to(setting.device)
    # Of a mixture's experts, which have one shape, the rows above reach each in small numbers only.
    expert = block.mlp.experts[0] if config.moe is not None and isinstance(block.mlp, Experts) else None
    return (
        # First, so that it runs in any case: what a device cannot run shows at start-up.
        _attention_holds(config, block.attention_form, tile, threads, setting)
        and _rows_hold(compute, rows, tile, threads, HEIGHTS)
        and (expert is None or _rows_hold(expert, rows, tile, threads, HEIGHTS))
    )


def _mix(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """In attention's place: every number of a row's projections reaches its output."""
    return query + (keys + values).repeat_interleave(query.shape[1] // keys.shape[1], 1)


def _rows_hold(compute: Compute, rows: Tensor, tile: int, threads: int, heights: Sequence[int]) -> bool:
    torch.set_num_threads(1)
    watched = [row for row in WATCHED if row < rows.shape[0]]
    alone = torch.stack([compute(pad_rows(rows[row : row + 1], tile))[0] for row in watched])
    torch.set_num_threads(threads)
    for turn, height in enumerate((*heights, 1)):
        first = turn % 2
        here = compute(pad_rows(rows[first : first + height], tile))
        within = [place for place, row in enumerate(watched) if first <= row < first + height]
        # One comparison for all: each wakes torch's threads.
        if not torch.equal(here[[watched[place] - first for place in within]], alone[within]):
            return False
    return True


def _attention_holds(config: BlockConfig, form: AttentionForm, tile: int, threads: int, setting: ExecutionEnv) -> bool:
    """Whether the attention that will be used keeps rows exact."""
    pages = 3
    tokens, width = (pages - 1) * PAGE_TOKENS + 9, padded(config.head_dim)
    query = numbers(PROBE_SEED + 1, tokens, config.num_heads, config.head_dim).to(setting.device)
    shape = (pages, config.num_kv_heads, PAGE_TOKENS, width)
    keys, values = (numbers(PROBE_SEED + i, *shape).to(setting.device, setting.kv_dtype) for i in (2, 3))
    keys[..., config.head_dim :] = values[..., config.head_dim :] = 0
    positions = torch.arange(tokens)
    torch.set_num_threads(1)
    whole = setting.attention(query, keys, values, positions, tile, form)
    torch.set_num_threads(threads)
    for first, count in ((0, 1), (5, 3), (40, 24), (PAGE_TOKENS, 9), (60, 70), (tokens - 1, 1)):
        here = slice(first, first + count)
        held = -(-(first + count) // PAGE_TOKENS)
        part = setting.attention(query[here], keys[:held], values[:held], positions[here], tile, form)
        if not torch.equal(part, whole[here]):
            return False
    return may_be_exact(setting.attention, form, setting.kv_dtype, config.head_dim)


def probe(kinds: Sequence[BlockConfig], tile: int, setting: ExecutionEnv = CPU) -> str:
    """32 hexadecimal digits over canned arithmetic on the blocks' widths: equal where machines give equal bits."""
    digest = hashlib.blake2b(digest_size=16)
    for config in kinds:
        for tensor in _canned(config, tile, setting):
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _widths(config: BlockConfig) -> Iterator[int]:
    """The lengths of the sums in a block's matrices."""
    yield from (config.hidden_size, config.num_heads * config.head_dim, padded(config.intermediate_size))
    if config.moe is not None:
        yield from (padded(config.moe.intermediate_size), padded(config.moe.shared_size))
    if config.latent is not None:
        yield from (config.latent.query_rank, config.latent.rank, config.latent.plain_dim)


def _canned(config: BlockConfig, tile: int, setting: ExecutionEnv) -> Iterator[Tensor]:
    """Products, sums, transcendentals, attention and angles."""
    device = setting.device
    for width in dict.fromkeys(width for width in _widths(config) if width):
        rows = numbers(PROBE_SEED + 4, tile, width)[:4].to(device)
        product = RowLinear(numbers(PROBE_SEED + 5, PROBE_FEATURES, width).to(device))(pad_rows(rows, tile))[:4]
        yield from (product, row_sum(rows * rows), exp_(product.clone()), softcap_(product / 4, 3.0))
        for activation in ACTIVATIONS.values():
            yield activation(product / 4)
    query = numbers(PROBE_SEED + 6, 4, config.num_heads, config.head_dim).to(device)
    shape = (2, config.num_kv_heads, PAGE_TOKENS, padded(config.head_dim))
    keys, values = (numbers(PROBE_SEED + i, *shape).to(device, setting.kv_dtype) for i in (7, 8))
    keys[..., config.head_dim :] = values[..., config.head_dim :] = 0
    sinks = numbers(PROBE_SEED + 9, config.num_heads).to(device) if config.sinks else None
    slopes = alibi_slopes(config.num_heads).to(device) if config.alibi else None
    form = AttentionForm(config.query_scale, config.window, config.attn_softcap, sinks, slopes)
    yield setting.attention(query, keys, values, torch.arange(80, 84), tile, form)
    yield from Rope(config.rope, config.rotated_dim).angles(torch.arange(PROBE_POSITIONS))
