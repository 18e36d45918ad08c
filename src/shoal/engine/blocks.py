"""A span's blocks as something that computes: what every kind offers, and the kind in plain torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from shoal.kv.cache import KVCache
from shoal.model.kernels.tiles import pad_rows
from shoal.model.nn.attention import AttentionForm, paged_attention
from shoal.model.nn.block import Attend, Block, BlockConfig
from shoal.model.nn.rope import Rope, RopeConfig
from shoal.model.nn.sdpa import Attention


class Part(NamedTuple):
    """A session's rows in a batch: rows first … first + num_rows of it, which stand at `position` of the session."""

    session: str
    position: int
    first: int
    num_rows: int


class Blocks(Protocol):
    """Computes rows through consecutive blocks, row-exact, and writes their keys and values into the cache.

    `any_thread`: threads may take turns at calling it.
    """

    any_thread: bool

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

    any_thread = False  # OpenMP would keep a set of threads for each that calls

    def __init__(
        self,
        config: BlockConfig,
        start: int,
        blocks: Sequence[Block],
        cache: KVCache,
        tile: int,
        attention: Attention = paged_attention,
    ) -> None:
        self._start = start
        self._blocks = blocks
        self._cache = cache
        self._ropes = {(turning := _turning(block.config)): Rope(*turning) for block in blocks}
        self._tile = tile
        self._attention = attention
        self.hidden_size = config.hidden_size

    def __len__(self) -> int:
        return len(self._blocks)

    def run(self, blocks: range, rows: Tensor, parts: Sequence[Part]) -> Tensor:
        """See `Blocks`."""
        count = rows.shape[0]
        # On the CPU: angles are computed there, and reading a position from a device would wait for it.
        at = [torch.arange(part.position, part.position + part.num_rows) for part in parts]
        rows = pad_rows(rows, self._tile)
        angles: dict[tuple[RopeConfig, int], tuple[Tensor, Tensor]] = {}
        for index in blocks:
            block = self._blocks[index]
            turning = _turning(block.config)
            if turning not in angles:
                angles[turning] = self._angles(self._ropes[turning], parts, at, rows.shape[0])
            attend = self._attend(self._start + index, block.attention_form, parts, at)
            rows = block(rows, angles[turning], attend, self._tile, count)
        return rows[:count]

    def _angles(self, rope: Rope, parts: Sequence[Part], at: Sequence[Tensor], num_rows: int) -> tuple[Tensor, Tensor]:
        """Every row's angles, whose factors may follow what its session was granted; rows that fill up have zeros."""
        known = [
            rope.angles(positions, self._cache.pages[part.session].max_tokens)
            for part, positions in zip(parts, at, strict=True)
        ]
        device = self._cache.device
        cos, sin = (pad_rows(torch.cat(each), num_rows).to(device) for each in zip(*known, strict=True))
        return cos, sin

    def _attend(self, block: int, form: AttentionForm, parts: Sequence[Part], at: Sequence[Tensor]) -> Attend:
        def attend(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            result = torch.zeros_like(query)
            for part, positions in zip(parts, at, strict=True):
                here = slice(part.first, part.first + part.num_rows)
                self._cache.write(part.session, block, part.position, keys[here], values[here])
                stored = self._cache.read(part.session, block)
                result[here] = self._attention(query[here], *stored, positions, self._tile, form)
            return result

        return attend


def _turning(config: BlockConfig) -> tuple[RopeConfig, int]:
    """What tells a block's rope from another's."""
    return config.rope, config.rotated_dim
