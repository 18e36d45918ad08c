"""A ragged batch through a span of blocks."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from shoal.engine.blocks import Blocks, Part
from shoal.errors import GrantExceeded, SpanError
from shoal.kv.cache import KVCache
from shoal.kv.prefix import PrefixCache
from shoal.types import Span


class Rows(NamedTuple):
    """A session's next rows: hidden states [n, hidden] in fp32 at `position`, for the blocks of `span`."""

    session: str
    position: int
    span: Span
    hidden_states: Tensor


class Runner:
    """Computes blocks `span` for many sessions at once. One thread at a time calls it, always the same unless `any_thread`.

    With `prefixes` (over the pages of the same cache) rows that were computed before are found there; `found_rows` counts those
    of the last step.
    """

    def __init__(self, span: Span, blocks: Blocks, cache: KVCache, prefixes: PrefixCache | None = None) -> None:
        if len(blocks) != len(span):
            raise ValueError(f"{len(blocks)} blocks were given for span {span}")
        self.span = span
        self.cache = cache
        self.found_rows = 0
        self._blocks = blocks
        self._prefixes = prefixes or PrefixCache(cache.pages, blocks.hidden_size, (), device=cache.device)

    @property
    def any_thread(self) -> bool:
        """Whether threads may take turns at calling it."""
        return self._blocks.any_thread

    def open(self, session: str, span: Span, max_tokens: int, client: str = "") -> None:
        """Room for a session of a client; raises ServerFull when there is none, SpanError for blocks not held."""
        if span.start >= span.stop or not self.span.covers(span):
            raise SpanError(f"span {span} is not within the blocks held, {self.span}")
        self.cache.open(session, span, max_tokens)
        self._prefixes.open(session, span, client)

    def truncate(self, session: str, num_tokens: int) -> None:
        """Forget a session's tokens from `num_tokens` on."""
        self.cache.truncate(session, num_tokens)
        self._prefixes.truncate(session, num_tokens)

    def close(self, session: str) -> None:
        """Free a session's cache; closing twice is harmless."""
        self.cache.close(session)
        self._prefixes.close(session)

    def step(self, batch: Sequence[Rows]) -> list[Tensor]:
        """Outputs [n, hidden] for each entry, in order, on the CPU; the caches hold the new tokens afterwards.

        Raises ValueError when an entry does not continue its session, or when its rows are or become NaN or infinite;
        GrantExceeded when one has no room. The caches are as they were before, whatever is raised.
        """
        self._check(batch)
        try:
            with torch.inference_mode():
                # From a device here and not where they are sent: there the copy would wait for the next step.
                return [output.cpu() for output in self._step(batch)]
        except BaseException:
            for rows in batch:
                self.truncate(rows.session, rows.position)
            raise

    def _step(self, batch: Sequence[Rows]) -> list[Tensor]:
        ahead = [self._prefixes.find(rows.session, rows.hidden_states) for rows in batch]
        rest = [_without(rows, one.outputs.shape[0]) for rows, one in zip(batch, ahead, strict=True)]
        for rows in rest:
            self.cache.grow(rows.session, rows.position + rows.hidden_states.shape[0])
        computed = iter(self._through([rows for rows in rest if rows.hidden_states.shape[0]]))
        outputs = []
        for rows, one in zip(rest, ahead, strict=True):
            own = next(computed) if rows.hidden_states.shape[0] else one.outputs[:0]
            self._prefixes.keep(rows.session, rows.position, own, one)
            outputs.append(torch.cat([one.outputs, own]) if one.outputs.shape[0] else own)
        self.found_rows = sum(one.outputs.shape[0] for one in ahead)
        return outputs

    def _through(self, batch: Sequence[Rows]) -> list[Tensor]:
        hidden = [rows.hidden_states for rows in batch]
        if self.cache.device != "cpu":
            hidden = [rows.to(self.cache.device) for rows in hidden]
        for blocks, active in self._segments(batch):
            self._run(blocks, [batch[index] for index in active], hidden, active)
        for rows, output in zip(batch, hidden, strict=True):
            # A value that is not finite would reach the rows before it through weights of zero: 0 · ∞ is NaN.
            if not _finite(output):
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
        if len(shape) != 2 or shape[0] < 1 or shape[1] != self._blocks.hidden_size or dtype != torch.float32:
            raise ValueError(
                f"rows of shape {list(shape)} and {dtype} are not [n, {self._blocks.hidden_size}] in float32"
            )
        pages = self.cache.pages[rows.session]
        if rows.position != pages.num_tokens or rows.span != pages.span:
            raise ValueError(
                f"rows at {rows.position} of {rows.span} do not continue {pages.num_tokens} of {pages.span}"
            )
        if rows.position + rows.hidden_states.shape[0] > pages.max_tokens:
            raise GrantExceeded(f"more rows than the {pages.max_tokens} granted")

    @staticmethod
    def _segments(batch: Sequence[Rows]) -> list[tuple[range, tuple[int, ...]]]:
        """Runs of blocks through which the same entries go."""
        if len(batch) == 1:
            return [(batch[0].span.blocks(), (0,))]
        borders = sorted({border for rows in batch for border in (rows.span.start, rows.span.stop)})
        segments = []
        for start, stop in itertools.pairwise(borders):
            active = tuple(index for index, rows in enumerate(batch) if start in rows.span)
            if active:
                segments.append((range(start, stop), active))
        return segments

    def _run(self, blocks: range, entries: list[Rows], hidden: list[Tensor], active: tuple[int, ...]) -> None:
        parts, first = [], 0
        for rows in entries:
            parts.append(Part(rows.session, rows.position, first, rows.hidden_states.shape[0]))
            first += rows.hidden_states.shape[0]
        local = range(blocks.start - self.span.start, blocks.stop - self.span.start)
        if len(parts) == 1:
            hidden[active[0]] = self._blocks.run(local, hidden[active[0]], parts)
            return
        outputs = self._blocks.run(local, torch.cat([hidden[index] for index in active]), parts)
        for part, index in zip(parts, active, strict=True):
            hidden[index] = outputs[part.first : part.first + part.num_rows]


def _finite(rows: Tensor) -> bool:
    # numpy takes a third of torch's time for a row.
    return bool(np.isfinite(rows.numpy()).all() if rows.device.type == "cpu" else torch.isfinite(rows).all())


def _without(rows: Rows, count: int) -> Rows:
    """An entry without its first rows."""
    if count == 0:
        return rows
    return rows._replace(position=rows.position + count, hidden_states=rows.hidden_states[count:])
