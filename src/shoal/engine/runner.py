"""A ragged batch through a span of blocks."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from shoal.engine.blocks import Blocks
from shoal.errors import GrantExceeded, SpanError
from shoal.kv.cache import KVCache
from shoal.kv.prefix import PrefixCache, PrefixMatch
from shoal.protocol.rows import Rows
from shoal.types import Span

NO_PAUSES: Mapping[str, int] = MappingProxyType({})


class _Pass:
    """A session's rows on their way through the blocks: `whole` as they came, `rest` without those that were found ahead,
    `hidden` [n, hidden] as the rest is before block `at`."""

    def __init__(self, whole: Rows, span: Span, ahead: PrefixMatch, device: str) -> None:
        self.whole = whole
        self.ahead = ahead
        self.at = span.start
        self.last = span.stop
        self.rest = whole.starting_at(whole.position + ahead.outputs.shape[0]) if ahead.outputs.shape[0] else whole
        self.hidden: Tensor = self.rest.hidden_states if device == "cpu" else self.rest.hidden_states.to(device)

    def here(self) -> Rows:
        """The rest as it is here."""
        return self.rest if self.hidden is self.rest.hidden_states else self.rest._replace(hidden_states=self.hidden)


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
        self._paused: dict[str, _Pass] = {}
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
        if paused is not None and num_tokens < paused.whole.stop:
            del self._paused[session]
            num_tokens = min(num_tokens, paused.whole.position)
        self.cache.truncate(session, num_tokens)
        self._prefixes.truncate(session, num_tokens)

    def close(self, session: str) -> None:
        """Free a session's cache; closing twice is harmless."""
        self._paused.pop(session, None)
        self.cache.close(session)
        self._prefixes.close(session)

    def step(self, batch: Sequence[Rows], pauses: Mapping[str, int] = NO_PAUSES) -> list[Tensor]:
        """Outputs [n, hidden] for each entry, in order, on the CPU; the caches hold the new tokens afterwards.

        Entries are in fp32. Those of a session stand together and follow one another. The rows of a session in `pauses` stop
        before that block, counted from the runner's first, and have no outputs yet: the same rows go on from there when they
        come again.

        Raises ValueError when an entry does not continue its session, or when its rows are or become NaN or infinite;
        GrantExceeded when one has no room. The caches are as they were before, whatever is raised.
        """
        joined = _joined(batch)
        self._check(joined)
        try:
            with torch.inference_mode():
                # From a device here and not where they are sent: there the copy would wait for the next step.
                outputs = [output.cpu() for output in self._step(joined, pauses)]
        except BaseException:
            for rows in joined:
                self.truncate(rows.session, rows.position)
            raise
        return outputs if len(outputs) == len(batch) else _parted(batch, joined, outputs)

    def _step(self, batch: Sequence[Rows], pauses: Mapping[str, int]) -> list[Tensor]:
        self.found_rows = 0
        passes = [self._paused.get(rows.session) or self._enter(rows) for rows in batch]
        runs = []
        for one in passes:
            pause = pauses.get(one.whole.session)
            stop = one.last if pause is None else max(one.at, min(self.span.start + pause, one.last))
            runs.append(range(one.at, stop if one.hidden.shape[0] else one.at))
        for blocks, active in _segments(runs):
            self._run(blocks, [passes[index] for index in active])
        for one in passes:
            # A value that is not finite would reach the rows before it through weights of zero: 0 · ∞ is NaN.
            if one.hidden.shape[0] and not _finite(one.hidden):
                raise ValueError(f"the rows of session {one.rest.session} at {one.rest.position} are not finite")
        return [self._leave(one, run.stop) for one, run in zip(passes, runs, strict=True)]

    def _enter(self, rows: Rows) -> _Pass:
        span = self.cache.pages[rows.session].span
        one = _Pass(rows, span, self._prefixes.find(rows.session, rows.hidden_states), self.cache.device)
        self.found_rows += one.ahead.outputs.shape[0]
        self.cache.grow(rows.session, rows.position + rows.hidden_states.shape[0])
        return one

    def _run(self, blocks: range, passes: Sequence[_Pass]) -> None:
        local = range(blocks.start - self.span.start, blocks.stop - self.span.start)
        outputs = self._blocks.run(local, [one.here() for one in passes])
        for one, hidden in zip(passes, outputs, strict=True):
            one.hidden = hidden

    def _leave(self, one: _Pass, at: int) -> Tensor:
        """Outputs of rows that are through; those of others wait for their next step."""
        rows, found = one.rest, one.ahead.outputs
        one.at = at
        if one.at < one.last and one.hidden.shape[0]:
            self._paused[rows.session] = one
            return one.hidden[:0]
        self._paused.pop(rows.session, None)
        self._prefixes.keep(rows.session, rows.position, one.hidden, one.ahead)
        return torch.cat([found, one.hidden]) if found.shape[0] else one.hidden

    def _check(self, batch: Sequence[Rows]) -> None:
        if len({rows.session for rows in batch}) != len(batch):
            raise ValueError("rows of a session must stand together in a batch")
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
        num_tokens = pages.num_tokens if paused is None else paused.whole.position
        if rows.position != num_tokens:
            raise ValueError(f"rows at {rows.position} do not continue {num_tokens}")
        if paused is not None and shape[0] != paused.whole.num_rows:
            raise ValueError(f"{shape[0]} rows do not go on where {paused.whole.num_rows} paused")
        if rows.position + shape[0] > pages.max_tokens:
            raise GrantExceeded(f"more rows than the {pages.max_tokens} granted")


def _joined(batch: Sequence[Rows]) -> Sequence[Rows]:
    """One entry for each session. Raises ValueError for rows of a session that stand together and do not follow one another."""
    if all(one.session != other.session for one, other in itertools.pairwise(batch)):
        return batch
    joined = []
    for _, group in itertools.groupby(batch, key=lambda rows: rows.session):
        entries = list(group)
        for one, other in itertools.pairwise(entries):
            if other.position != one.stop:
                raise ValueError(f"rows at {other.position} do not continue {one.stop}")
        whole = torch.cat([rows.hidden_states for rows in entries]) if len(entries) > 1 else entries[0].hidden_states
        joined.append(entries[0]._replace(hidden_states=whole))
    return joined


def _parted(batch: Sequence[Rows], joined: Sequence[Rows], outputs: Sequence[Tensor]) -> list[Tensor]:
    """For each entry its part of its session's outputs; an empty one of those that paused."""
    found = {rows.session: (rows.position, output) for rows, output in zip(joined, outputs, strict=True)}
    parts = []
    for rows in batch:
        position, output = found[rows.session]
        parts.append(output[rows.position - position : rows.stop - position])
    return parts


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
