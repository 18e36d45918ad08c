"""A span's blocks as something that computes: what every kind offers, and the kind in plain torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from shoal.kernels.tiles import pad_rows
from shoal.kv.cache import KVCache
from shoal.nn.attention import paged_attention
from shoal.nn.block import Attend, Block, BlockConfig
from shoal.nn.rope import Rope


class Part(NamedTuple):
    """A session's rows in a batch: rows first … first + num_rows of it, which stand at `position` of the session."""

    session: str
    position: int
    first: int
    num_rows: int


class Blocks(Protocol):
    """Computes rows through consecutive blocks, row-exact, and writes their keys and values into the cache."""

    @property
    def hidden_size(self) -> int:
        """Width of a row."""
        ...

    def __len__(self) -> int: ...

    def run(self, blocks: range, rows: Tensor, parts: Sequence[Part]) -> Tensor:
        """Rows [n, hidden] in fp32 on the cache's device through the blocks of a range (0 is the span's first).

        The sessions' pages have room for them. Returns new rows [n, hidden].
        """
        ...


class TorchBlocks:
    """Blocks in plain torch: the truth and the fallback. `start` is the model's index of the first block."""

    def __init__(self, config: BlockConfig, start: int, blocks: Sequence[Block], cache: KVCache, tile: int) -> None:
        self._start = start
        self._blocks = blocks
        self._cache = cache
        self._rope = Rope(config.rope, config.head_dim)
        self._tile = tile
        self.hidden_size = config.hidden_size

    def __len__(self) -> int:
        return len(self._blocks)

    def run(self, blocks: range, rows: Tensor, parts: Sequence[Part]) -> Tensor:
        """See `Blocks`."""
        count, device = rows.shape[0], self._cache.device
        at = [torch.arange(part.position, part.position + part.num_rows, device=device) for part in parts]
        rows = pad_rows(rows, self._tile)
        angles = self._rope.angles(torch.nn.functional.pad(torch.cat(at), (0, rows.shape[0] - count)))
        for block in blocks:
            rows = self._blocks[block](rows, angles, self._attend(self._start + block, parts, at))
        return rows[:count]

    def _attend(self, block: int, parts: Sequence[Part], at: Sequence[Tensor]) -> Attend:
        def attend(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            result = torch.zeros_like(query)
            for part, positions in zip(parts, at, strict=True):
                here = slice(part.first, part.first + part.num_rows)
                self._cache.write(part.session, block, part.position, keys[here], values[here])
                stored = self._cache.read(part.session, block)
                result[here] = paged_attention(query[here], *stored, positions, self._tile)
            return result

        return attend
