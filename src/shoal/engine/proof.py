"""Start-up proof: does this machine's BLAS keep rows exact on the model's own shapes, and with which tile?

Measured beforehand in docs/decisions/0003-row-exact-torch.md; what was measured on one machine is a guess on the next.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence

import msgspec
import numpy as np
import torch
from torch import Tensor

from shoal.kernels.tiles import RowLinear, exp_, gelu_tanh_, pad_rows, padded, row_sum, silu_
from shoal.nn.attention import PAGE_TOKENS, paged_attention
from shoal.nn.block import HEAD_ROWS, Block, BlockConfig, Ends
from shoal.nn.rope import Rope

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


def numbers(seed: int, *shape: int) -> Tensor:
    """The same fp32 numbers everywhere, between −1 and 1: 21 bits each of Philox's raw output (counter-based)."""
    raw = np.random.Philox(key=seed).random_raw(math.prod(shape))
    centred = (raw >> np.uint64(43)).astype(np.int64) - 2**20
    return torch.from_numpy((centred / 2**20).astype(np.float32).reshape(shape))


def prove(block: Block, config: BlockConfig, device: str = "cpu") -> Proof:
    """Find the smallest tile that keeps a block's rows exact with the present threads, else with one thread.

    The thread count that was found is set. If nothing holds, the result says `exact=False`, with one thread and the
    largest tile.
    """
    return _search(lambda tile, threads: block_holds(block, config, tile, threads, device), config, device)


def prove_ends(ends: Ends, config: BlockConfig) -> Proof:
    """The same for the final norm and the head."""

    def holds(tile: int, threads: int) -> bool:
        rows = numbers(PROBE_SEED, HEAD_HEIGHTS[-1] + 1, config.hidden_size)
        return _rows_hold(lambda some: ends.logits(some, tile), rows, tile, threads, HEAD_HEIGHTS)

    return _search(holds, config)


def _search(holds: Callable[[int, int], bool], config: BlockConfig, device: str = "cpu") -> Proof:
    with torch.inference_mode():
        for threads in dict.fromkeys((torch.get_num_threads(), 1)):
            for tile in TILES:
                if holds(tile, threads):
                    return Proof("torch", tile, threads, True, probe(config, tile, device))
        torch.set_num_threads(1)
        return Proof("torch", TILES[-1], 1, False, probe(config, TILES[-1], device))


def block_holds(block: Block, config: BlockConfig, tile: int, threads: int, device: str = "cpu") -> bool:
    """Whether rows come out the same alone and in company, at any place, with one thread and with `threads`."""

    def compute(rows: Tensor) -> Tensor:
        # Any angle will do: the rotation is elementwise.
        angles = rows.new_full((2, rows.shape[0], config.head_dim // 2), 0.6)
        return block(rows, (angles[0], angles[1]), _mix)

    rows = numbers(PROBE_SEED, HEIGHTS[-1] + 1, config.hidden_size).to(device)
    return _rows_hold(compute, rows, tile, threads, HEIGHTS) and _attention_holds(config, tile, threads, device)


def _mix(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """In attention's place: every number of a row's projections reaches its output."""
    return query + (keys + values).repeat_interleave(query.shape[1] // keys.shape[1], 1)


def _rows_hold(compute: Compute, rows: Tensor, tile: int, threads: int, heights: Sequence[int]) -> bool:
    torch.set_num_threads(1)
    watched = [row for row in WATCHED if row < rows.shape[0]]
    alone = {row: compute(pad_rows(rows[row : row + 1], tile))[0] for row in watched}
    torch.set_num_threads(threads)
    for turn, height in enumerate((*heights, 1)):
        first = turn % 2
        here = compute(pad_rows(rows[first : first + height], tile))
        for row, expected in alone.items():
            if first <= row < first + height and not torch.equal(here[row - first], expected):
                return False
    return True


def _attention_holds(config: BlockConfig, tile: int, threads: int, device: str) -> bool:
    pages = 3
    tokens, width = (pages - 1) * PAGE_TOKENS + 9, padded(config.head_dim)
    query = numbers(PROBE_SEED + 1, tokens, config.num_heads, config.head_dim).to(device)
    shape = (pages, config.num_kv_heads, PAGE_TOKENS, width)
    keys, values = (numbers(PROBE_SEED + i, *shape).to(device) for i in (2, 3))
    keys[..., config.head_dim :] = values[..., config.head_dim :] = 0
    positions = torch.arange(tokens, device=device)
    torch.set_num_threads(1)
    whole = paged_attention(query, keys, values, positions, tile)
    torch.set_num_threads(threads)
    for first, count in ((0, 1), (5, 3), (40, 24), (PAGE_TOKENS, 9), (60, 70), (tokens - 1, 1)):
        here = slice(first, first + count)
        held = -(-(first + count) // PAGE_TOKENS)
        part = paged_attention(query[here], keys[:held], values[:held], positions[here], tile)
        if not torch.equal(part, whole[here]):
            return False
    return True


def probe(config: BlockConfig, tile: int, device: str = "cpu") -> str:
    """32 hexadecimal digits over canned arithmetic on a block's widths: equal where machines give equal bits."""
    digest = hashlib.blake2b(digest_size=16)

    def add(tensor: Tensor) -> None:
        digest.update(tensor.cpu().contiguous().numpy().tobytes())

    for width in (config.hidden_size, config.num_heads * config.head_dim, padded(config.intermediate_size)):
        rows = numbers(PROBE_SEED + 4, tile, width)[:4].to(device)
        product = RowLinear(numbers(PROBE_SEED + 5, PROBE_FEATURES, width).to(device))(pad_rows(rows, tile))[:4]
        for result in (
            product,
            row_sum(rows * rows),
            exp_(product.clone()),
            silu_(product / 4),
            gelu_tanh_(product / 4),
        ):
            add(result)
    query = numbers(PROBE_SEED + 6, 4, config.num_heads, config.head_dim).to(device)
    shape = (2, config.num_kv_heads, PAGE_TOKENS, padded(config.head_dim))
    keys, values = (numbers(PROBE_SEED + i, *shape).to(device) for i in (7, 8))
    keys[..., config.head_dim :] = values[..., config.head_dim :] = 0
    add(paged_attention(query, keys, values, torch.arange(80, 84, device=device), tile))
    for angles in Rope(config.rope, config.head_dim).angles(torch.arange(PROBE_POSITIONS)):
        add(angles)
    return digest.hexdigest()
