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
from shoal.kv.prefix import PrefixCache, PrefixMatch
from shoal.types import Span


class Rows(NamedTuple):
    """A session's next rows: hidden states [n, hidden] in fp32 at `position`, for the blocks of `span`.

    They pause before block `upto`, counted from the runner's first (None: they go through all), and the same rows again, with a
    higher one, go on from there.
    """

    session: str
    position: int
    span: Span
    hidden_states: Tensor
    upto: int | None = None


class _UnderWay:
    """Rows that have come as far as block `at`, on their way to `stop`: `hidden` is what they are there, `ahead` what was found
    of those before them."""

    def __init__(self, rows: Rows, ahead: PrefixMatch, device: str) -> None:
        self.rows = rows
        self.ahead = ahead
        self.rest = _without(rows, ahead.outputs.shape[0])
        self.hidden = self.rest.hidden_states if device == "cpu" else self.rest.hidden_states.to(device)
        self.at = self.stop = rows.span.start


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
        self._paused: dict[str, _UnderWay] = {}
        self._prefixes = prefixes or PrefixCache(cache.pages, blocks.hidden_size, device=cache.device)

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
        """Forget a session's tokens from `num_tokens` on; if rows that have paused are among them, all of these."""
        paused = self._paused.get(session)
        if paused is not None and num_tokens < paused.rows.position + paused.rows.hidden_states.shape[0]:
            del self._paused[session]
            num_tokens = min(num_tokens, paused.rows.position)
        self.cache.truncate(session, num_tokens)
        self._prefixes.truncate(session, num_tokens)

    def close(self, session: str) -> None:
        """Free a session's cache; closing twice is harmless."""
        self._paused.pop(session, None)
        self.cache.close(session)
        self._prefixes.close(session)

    def step(self, batch: Sequence[Rows]) -> list[Tensor]:
        """Outputs [n, hidden] for each entry, in order, on the CPU; the caches hold the new tokens afterwards. There are
        none yet of rows that pause.

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
        self.found_rows = 0
        entries = [self._paused.get(rows.session) or self._enter(rows) for rows in batch]
        for entry, rows in zip(entries, batch, strict=True):
            upto = rows.span.stop if rows.upto is None else self.span.start + rows.upto
            entry.stop = max(entry.at, min(upto, rows.span.stop))
        self._through([entry for entry in entries if entry.hidden.shape[0]])
        return [self._leave(entry) for entry in entries]

    def _enter(self, rows: Rows) -> _UnderWay:
        entry = _UnderWay(rows, self._prefixes.find(rows.session, rows.hidden_states), self.cache.device)
        self.found_rows += entry.ahead.outputs.shape[0]
        self.cache.grow(rows.session, rows.position + rows.hidden_states.shape[0])
        return entry

    def _through(self, entries: Sequence[_UnderWay]) -> None:
        for blocks, active in _segments([range(entry.at, entry.stop) for entry in entries]):
            self._run(blocks, [entries[index] for index in active])
        for entry in entries:
            # A value that is not finite would reach the rows before it through weights of zero: 0 · ∞ is NaN.
            if not _finite(entry.hidden):
                raise ValueError(f"the rows of session {entry.rows.session} at {entry.rest.position} are not finite")

    def _run(self, blocks: range, entries: Sequence[_UnderWay]) -> None:
        parts, first = [], 0
        for entry in entries:
            parts.append(Part(entry.rows.session, entry.rest.position, first, entry.hidden.shape[0]))
            first += entry.hidden.shape[0]
        local = range(blocks.start - self.span.start, blocks.stop - self.span.start)
        whole = entries[0].hidden if len(entries) == 1 else torch.cat([entry.hidden for entry in entries])
        outputs = self._blocks.run(local, whole, parts)
        for entry, part in zip(entries, parts, strict=True):
            entry.hidden = outputs[part.first : part.first + part.num_rows] if len(parts) > 1 else outputs

    def _leave(self, entry: _UnderWay) -> Tensor:
        """Outputs of rows that are through; those of others wait for their next step."""
        rows, found = entry.rest, entry.ahead.outputs
        entry.at = entry.stop
        if entry.at < rows.span.stop and entry.hidden.shape[0]:
            self._paused[rows.session] = entry
            return entry.hidden[:0]
        self._paused.pop(rows.session, None)
        self._prefixes.keep(rows.session, rows.position, entry.hidden, entry.ahead)
        return torch.cat([found, entry.hidden]) if found.shape[0] else entry.hidden

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
        pages, paused = self.cache.pages[rows.session], self._paused.get(rows.session)
        num_tokens = pages.num_tokens if paused is None else paused.rows.position
        if rows.position != num_tokens or rows.span != pages.span:
            raise ValueError(f"rows at {rows.position} of {rows.span} do not continue {num_tokens} of {pages.span}")
        if paused is not None and shape != tuple(paused.rows.hidden_states.shape):
            raise ValueError(f"{shape[0]} rows do not go on where {paused.rows.hidden_states.shape[0]} paused")
        if rows.position + rows.hidden_states.shape[0] > pages.max_tokens:
            raise GrantExceeded(f"more rows than the {pages.max_tokens} granted")


def _segments(runs: Sequence[range]) -> list[tuple[range, tuple[int, ...]]]:
    """Blocks through which the same entries go, given those of each."""
    if len(runs) == 1:
        return [(runs[0], (0,))] if runs[0] else []
    borders = sorted({border for run in runs for border in (run.start, run.stop)})
    segments = []
    for start, stop in itertools.pairwise(borders):
        active = tuple(index for index, run in enumerate(runs) if start in run)
        if active:
            segments.append((range(start, stop), active))
    return segments


def _finite(rows: Tensor) -> bool:
    # numpy takes a third of torch's time for a row, and its reduction a half of its own method's.
    if rows.device.type == "cpu":
        return bool(np.logical_and.reduce(np.isfinite(rows.numpy()), axis=None))
    return bool(torch.isfinite(rows).all())


def _without(rows: Rows, count: int) -> Rows:
    """An entry without its first rows."""
    if count == 0:
        return rows
    return rows._replace(position=rows.position + count, hidden_states=rows.hidden_states[count:])
