"""A span's blocks as something that computes: what every kind offers, and the kind in plain torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from shoal.kv.cache import KVCache
from shoal.model.kernels.tiles import pad_rows
from shoal.model.nn.attention import AttentionForm, paged_attention
from shoal.model.nn.block import Attend, Block, BlockConfig
from shoal.model.nn.rope import Rope, RopeConfig
from shoal.model.nn.sdpa import Attention
from shoal.protocol.rows import Rows


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

    def run(self, blocks: range, batch: Sequence[Rows]) -> list[Tensor]:
        """Rows of sessions, [n, hidden] each in fp32 on the cache's device, through the blocks of a range (0 is the span's
        first); a session has one entry.

        The sessions' pages have room for them. Returns new rows [n, hidden] for each entry.
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

    def run(self, blocks: range, batch: Sequence[Rows]) -> list[Tensor]:
        counts = [rows.hidden_states.shape[0] for rows in batch]
        # On the CPU: angles are computed there, and reading a position from a device would wait for it.
        at = [torch.arange(rows.position, rows.stop) for rows in batch]
        hidden = batch[0].hidden_states if len(batch) == 1 else torch.cat([rows.hidden_states for rows in batch])
        hidden = pad_rows(hidden, self._tile)
        angles: dict[tuple[RopeConfig, int], tuple[Tensor, Tensor]] = {}
        for index in blocks:
            block = self._blocks[index]
            turning = _turning(block.config)
            if turning not in angles:
                angles[turning] = self._angles(self._ropes[turning], batch, at, hidden.shape[0])
            attend = self._attend(self._start + index, block.attention_form, batch, at)
            hidden = block(hidden, angles[turning], attend, self._tile, sum(counts))
        return list(torch.split(hidden[: sum(counts)], counts))

    def _angles(self, rope: Rope, batch: Sequence[Rows], at: Sequence[Tensor], num_rows: int) -> tuple[Tensor, Tensor]:
        """Every row's angles, whose factors may follow what its session was granted; rows that fill up have zeros."""
        known = [
            rope.angles(positions, self._cache.pages[rows.session].max_tokens)
            for rows, positions in zip(batch, at, strict=True)
        ]
        device = self._cache.device
        cos, sin = (pad_rows(torch.cat(each), num_rows).to(device) for each in zip(*known, strict=True))
        return cos, sin

    def _attend(self, block: int, form: AttentionForm, batch: Sequence[Rows], at: Sequence[Tensor]) -> Attend:
        def attend(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            result, first = torch.zeros_like(query), 0
            query = self._cache.turned(query)
            for rows, positions in zip(batch, at, strict=True):
                here = slice(first, first + positions.shape[0])
                self._cache.write(rows.session, block, rows.position, keys[here], values[here])
                stored = self._cache.read(rows.session, block)
                result[here] = self._attention(query[here], *stored, positions, self._tile, form)
                first = here.stop
            return result

        return attend


def _turning(config: BlockConfig) -> tuple[RopeConfig, int]:
    """What tells a block's rope from another's."""
    return config.rope, config.rotated_dim
