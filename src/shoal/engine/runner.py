"""A ragged batch through a span of blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from shoal.errors import GrantExceeded, SpanError
from shoal.kernels.tiles import pad_rows
from shoal.kv.cache import KVCache
from shoal.nn.attention import paged_attention
from shoal.nn.block import Attend, Block, BlockConfig
from shoal.nn.rope import Rope
from shoal.types import Span


class Rows(NamedTuple):
    """A session's next rows: hidden states [n, hidden] in fp32 at `position`, for the blocks of `span`."""

    session: str
    position: int
    span: Span
    hidden_states: Tensor


class _Part(NamedTuple):
    """A session's rows in a batch: rows first … first + num_rows of it."""

    rows: Rows
    first: int
    num_rows: int
    positions: Tensor


class Runner:
    """Computes blocks `span` for many sessions at once. Not thread-safe: one thread calls everything."""

    def __init__(self, config: BlockConfig, span: Span, blocks: Sequence[Block], cache: KVCache, tile: int) -> None:
        if len(blocks) != len(span):
            raise ValueError(f"{len(blocks)} blocks were given for span {span}")
        self.span = span
        self.cache = cache
        self._blocks = blocks
        self._rope = Rope(config.rope, config.head_dim)
        self._tile = tile
        self._hidden_size = config.hidden_size

    def open(self, session: str, span: Span, max_tokens: int) -> None:
        """Room for a session; raises ServerFull when there is none, SpanError for blocks not held."""
        if span.start >= span.stop or not self.span.covers(span):
            raise SpanError(f"span {span} is not within the blocks held, {self.span}")
        self.cache.open(session, span, max_tokens)

    def truncate(self, session: str, num_tokens: int) -> None:
        """Forget a session's tokens from `num_tokens` on."""
        self.cache.truncate(session, num_tokens)

    def close(self, session: str) -> None:
        """Free a session's cache; closing twice is harmless."""
        self.cache.close(session)

    def step(self, batch: Sequence[Rows]) -> list[Tensor]:
        """Outputs [n, hidden] for each entry, in order; the caches hold the new tokens afterwards.

        Raises ValueError when an entry does not continue its session, or when its rows are or become NaN or infinite;
        GrantExceeded when one has no room. The caches are as they were before, whatever is raised.
        """
        self._check(batch)
        for rows in batch:
            self.cache.grow(rows.session, rows.position + rows.hidden_states.shape[0])
        try:
            with torch.inference_mode():
                return self._through(batch)
        except BaseException:
            for rows in batch:
                self.cache.truncate(rows.session, rows.position)
            raise

    def _through(self, batch: Sequence[Rows]) -> list[Tensor]:
        hidden = [rows.hidden_states.to(self.cache.device) for rows in batch]
        for blocks, active in self._segments(batch):
            self._run(blocks, [batch[index] for index in active], hidden, active)
        for rows, output in zip(batch, hidden, strict=True):
            # A value that is not finite would reach the rows before it through weights of zero: 0 · ∞ is NaN.
            if not bool(torch.isfinite(output).all()):
                raise ValueError(f"the rows of session {rows.session} at {rows.position} are not finite")
        return hidden

    def _check(self, batch: Sequence[Rows]) -> None:
        if len({rows.session for rows in batch}) != len(batch):
            raise ValueError("a session may have rows only once in a batch")
        for rows in batch:
            self._check_rows(rows)

    def _check_rows(self, rows: Rows) -> None:
        if rows.session not in self.cache.pages:
            raise ValueError(f"there is no session {rows.session}")
        shape, dtype = tuple(rows.hidden_states.shape), rows.hidden_states.dtype
        if len(shape) != 2 or shape[0] < 1 or shape[1] != self._hidden_size or dtype != torch.float32:
            raise ValueError(f"rows of shape {list(shape)} and {dtype} are not [n, {self._hidden_size}] in float32")
        pages = self.cache.pages[rows.session]
        if rows.position != pages.num_tokens or rows.span != pages.span:
            raise ValueError(
                f"rows at {rows.position} of {rows.span} do not continue {pages.num_tokens} of {pages.span}"
            )
        if rows.position + rows.hidden_states.shape[0] > pages.max_tokens:
            raise GrantExceeded(f"more rows than the {pages.max_tokens} granted")

    def _segments(self, batch: Sequence[Rows]) -> list[tuple[range, tuple[int, ...]]]:
        """Runs of blocks through which the same entries go."""
        segments: list[tuple[range, tuple[int, ...]]] = []
        for block in self.span.blocks():
            active = tuple(index for index, rows in enumerate(batch) if block in rows.span)
            if segments and segments[-1][1] == active:
                segments[-1] = (range(segments[-1][0].start, block + 1), active)
            elif active:
                segments.append((range(block, block + 1), active))
        return segments

    def _run(self, blocks: range, entries: list[Rows], hidden: list[Tensor], active: tuple[int, ...]) -> None:
        parts = _parts(entries, self.cache.device)
        rows = pad_rows(torch.cat([hidden[index] for index in active]), self._tile)
        positions = torch.cat([part.positions for part in parts])
        angles = self._rope.angles(torch.nn.functional.pad(positions, (0, rows.shape[0] - positions.shape[0])))
        for block in blocks:
            rows = self._blocks[block - self.span.start](rows, angles, self._attend(block, parts))
        for part, index in zip(parts, active, strict=True):
            hidden[index] = rows[part.first : part.first + part.num_rows]

    def _attend(self, block: int, parts: list[_Part]) -> Attend:
        def attend(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            result = torch.zeros_like(query)
            for rows, first, count, positions in parts:
                here = slice(first, first + count)
                self.cache.write(rows.session, block, rows.position, keys[here], values[here])
                stored = self.cache.read(rows.session, block)
                result[here] = paged_attention(query[here], *stored, positions, self._tile)
            return result

        return attend


def _parts(entries: list[Rows], device: str) -> list[_Part]:
    parts, first = [], 0
    for rows in entries:
        count = rows.hidden_states.shape[0]
        parts.append(_Part(rows, first, count, torch.arange(rows.position, rows.position + count, device=device)))
        first += count
    return parts
