"""Which rows are computed next: a pure policy (continuous batching as in Orca, OSDI 2022; chunked prefill as in Sarathi,
arXiv:2308.16369). It knows no threads, no clock and nothing of rows but their number: docs/concepts/batching.md."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

from shoal.engine.batch_delay import BatchDelay
from shoal.engine.compute_stats import ComputeStats
from shoal.engine.prefill_budget import PrefillBudget
from shoal.errors import ProtocolError, ServerFull, UsageError
from shoal.protocol.journal import FRAME_ROWS
from shoal.protocol.messages import HopTrace
from shoal.protocol.rows import Rows

DECODE_ROWS = 8
"""A session with at most so many rows waiting is decoding (or verifying a draft); more are a prefill."""

PREFILL_CHUNK_ROWS = FRAME_ROWS
"""Rows of prefill in one step, of all sessions together, when no session decodes; beside decoding it is at most this.

As many as a client sends in a frame: a hop that computes two frames at once keeps the next hop waiting for both, and is no
faster per row where it was measured (two cores, one and two threads)."""

MAX_STEP_ROWS = 512
"""Rows in one step."""

MAX_QUEUED_ROWS = 65_536
"""Rows that may wait in all."""

BACKGROUND_ROWS = 8
"""Rows in a step of sessions in the background, while others have rows too: beside them they cost next to nothing."""

PLAIN_STEP_EVERY = 16
"""Of the steps that decode beside a prefill, each of so many goes without it: decoding slows down as sessions grow, which would
be taken for what the prefill costs."""

RETRY_AFTER_S = 1.0
"""The advice of a full queue that has measured no prefill yet."""


class Limits(NamedTuple):
    """The bounds of a queue; see the constants."""

    prefill_chunk_rows: int = PREFILL_CHUNK_ROWS
    max_step_rows: int = MAX_STEP_ROWS
    max_queued_rows: int = MAX_QUEUED_ROWS


class Batch(NamedTuple):
    """Rows for one step; those of a session stand together. `BatchQueue.finish` or `split` takes it back.

    The rows of a session in `pauses` stop before that block, counted from the first; they come again in a later batch.
    `decode_rows` of all belong to the sessions `decoding`. `other_rows` are the others; where they go through a part of the
    blocks they count as that part. The step began at `began_at`, and could have begun `held_s` before.
    """

    rows: list[Rows]
    sessions: dict[str, _Session]
    pauses: dict[str, int]
    decoding: list[str]
    decode_rows: int
    other_rows: float
    num_rows: int
    began_at: float
    held_s: float = 0.0


class BatchQueue:
    """Decode before prefill; turns between clients, then between a client's sessions; a prefill always gets its share.

    `next_batch` gives out rows, `finish` takes their outputs, `take_output` has those that are still wanted: each row of a
    session once and in order, none from a position on that was rewound, none of a session that was forgotten. One batch is
    out at a time. Times are in seconds of one clock of the caller's.

    What steps took decides how many rows of prefill go beside decoding ones, and for which sessions a step waits. A chunk of
    prefill beside decoding goes through some of the `depth` blocks in a step; other prefills wait until it is through.

    Sessions in the background (they stand by for a failure) get a few rows beside the others', or the whole step.

    Raises UsageError for limits that leave no room for either kind.
    """

    def __init__(self, limits: Limits | None = None, depth: int = 1) -> None:
        self.depth = depth
        self.limits = limits or Limits()
        if self.limits.prefill_chunk_rows < 1 or self.limits.max_step_rows < 2 or self.limits.max_queued_rows < 1:
            raise UsageError(f"{self.limits}: a step has a row of prefill and one of decode, and a queue a row")
        self.queued_rows = 0
        self.stats = ComputeStats()
        self.budget = PrefillBudget()
        self.delay = BatchDelay()
        self._ready_at: float | None = None  # since when a step could begin
        self._mixed_steps = 0  # in a row
        self._sessions: dict[str, _Session] = {}
        # Those with rows that wait. What was not served for longest stands first, in both.
        self._turns: list[str] = []
        self._lines: dict[str, list[_Session]] = {}
        self._paused: list[_Session] = []  # their rows are between two blocks
        self._outputs: deque[tuple[Rows, HopTrace]] = deque()

    def open(self, session: str, client: str, background: bool = False) -> None:
        """A session of a client; its rows begin at position 0."""
        self._sessions[session] = _Session(client, background)

    def set_background(self, session: str, background: bool) -> None:
        """Whether a session's rows are computed beside those of others only; nothing for one that is not open."""
        if session in self._sessions:
            self._sessions[session].background = background

    def submit(self, rows: Rows, now: float) -> None:
        """Queue one row or more, which came at `now` and must follow those before.

        Raises ProtocolError when they do not, ValueError for no rows, ServerFull when the queue is full, with the time that it
        takes to halve.
        """
        session, num_rows = self._sessions.get(rows.session), rows.num_rows
        if session is None or rows.position != session.position:
            raise ProtocolError(f"rows at {rows.position} do not follow what session {rows.session[:8]} has sent")
        if num_rows < 1:
            raise ValueError(f"{num_rows} rows cannot be queued")
        if self.queued_rows + num_rows > self.limits.max_queued_rows:
            rows_per_s = self.stats.prefill_rows_per_s
            wait_s = self.queued_rows / 2 / rows_per_s if rows_per_s > 0 else RETRY_AFTER_S
            raise ServerFull(f"{self.queued_rows} rows are waiting already", retry_after=wait_s)
        self.delay.arrived(rows.session, now)
        if not session.waiting:
            if session.client not in self._lines:
                self._lines[session.client] = []
                self._turns.append(session.client)
            self._lines[session.client].append(session)
        session.waiting.append(rows._replace(enqueued_at=now))  # here and not in a method: this is done for every row
        session.waiting_rows += num_rows
        session.position += num_rows
        self.queued_rows += num_rows

    def rewind(self, session: str, position: int) -> None:
        """A session's rows from `position` on are void, wherever they are; nothing for one that is not open."""
        found = self._sessions.get(session)
        if found is None:
            return
        void_rows = found.rewind(position)
        if void_rows:
            self._dequeued(found, void_rows)
        if not found.running and found in self._paused:
            self._paused.remove(found)
        if self._outputs:
            self._outputs = deque(
                (rows if rows.session != session or rows.stop <= position else rows.ending_at(position), trace)
                for rows, trace in self._outputs
                if rows.session != session or rows.position < position
            )

    def forget(self, session: str) -> None:
        """A session is closed: its rows are void, and no step waits for it. Harmless for one that is not open."""
        self.rewind(session, 0)
        self._sessions.pop(session, None)
        self.delay.forget(session)

    def wait_s(self, now: float) -> float | None:
        """How long to wait before `next_batch`, for sessions that are due; None as long as there are no rows."""
        if not (self.queued_rows or self._paused):
            self._ready_at = None
            return None
        if self._ready_at is None:
            self._ready_at = now
        return self.delay.hold_s(self._ready_at, now)

    def is_short_and_alone(self, now: float) -> bool:
        """Whether the next step is short and of one session that decodes, while no other is about to come back."""
        alone = len(self._turns) == 1 and len(self._lines[self._turns[0]]) == 1 and not self._paused
        return alone and self.queued_rows <= DECODE_ROWS and self.delay.is_short_and_alone(now)

    def next_batch(self, now: float) -> Batch:
        """The next step's rows; none when none wait."""
        paused, self._paused = self._paused, []
        order = [session for session in self._in_turn() if not session.running]
        decode = [one for one in order if one.waiting_rows <= DECODE_ROWS and not one.background]
        prefill = [one for one in order if one.waiting_rows > DECODE_ROWS and not one.background and not paused]
        self._mixed_steps = self._mixed_steps + 1 if decode and (paused or prefill) else 0
        rationed = bool(decode) or self.delay.anybody_away(now)

        whole, room = self.limits.prefill_chunk_rows, self.limits.max_step_rows
        chunk = self.budget.rows(whole, self.depth) if rationed and prefill else whole
        kept_free = chunk if prefill else whole if paused else 0
        decode = self._take(_fill(decode, room - min(kept_free, room // 2)))
        room -= _rows_of(decode)
        prefill = self._take(_share(prefill, min(chunk, room)))
        room -= _rows_of(prefill)
        most = BACKGROUND_ROWS if decode or prefill or paused else whole
        beside = self._take(_share([one for one in order if one.background], min(most, room)))
        self._rotate([*decode, *beside, *prefill])

        prefill = paused + prefill
        blocks = self._blocks(_rows_of(prefill), rationed) if prefill else 0
        if not blocks:
            prefill, self._paused = [], prefill
        held_s = 0.0 if self._ready_at is None else now - self._ready_at
        self._ready_at = None
        return self._batch(decode, beside, prefill, blocks)._replace(began_at=now, held_s=held_s)

    def finish(self, batch: Batch, outputs: Sequence[Any], now: float, found_rows: int = 0) -> None:
        """The step of this batch has ended: `outputs` has an entry for each of its rows, an empty one where they pause.

        `found_rows` of them were not computed but found.
        """
        elapsed_s = now - batch.began_at
        self._measure(batch, sum(map(len, outputs)), elapsed_s, now, found_rows)
        num_sessions = len(batch.sessions)
        for rows, output in zip(batch.rows, outputs, strict=True):
            session = batch.sessions[rows.session]
            if rows.session in batch.pauses or not session.running:
                continue
            wanted, spent_s = session.running.pop(0), session.spent_s + elapsed_s
            queue_s = max(0.0, now - spent_s - rows.enqueued_at)  # rounding may leave less than nothing
            trace = HopTrace(rows.received_at, queue_s, spent_s, num_sessions, batch.num_rows)
            count = wanted.num_rows
            output = output if count == len(output) else output[:count]
            self._outputs.append((wanted._replace(hidden_states=output), trace))
        for name, session in batch.sessions.items():
            if name in batch.pauses and session.running:
                session.spent_s += elapsed_s
                self._paused.append(session)
            else:
                session.spent_s, session.blocks = 0.0, 0

    def split(self, batch: Batch) -> list[Batch]:
        """The step of this batch has failed: what is still wanted of each session, to be tried alone and through all blocks."""
        parts = []
        for name, session in batch.sessions.items():
            session.blocks = 0
            if session.running:
                sessions = [session]
                part = self._batch(sessions, [], []) if name in batch.decoding else self._batch([], sessions, [])
                parts.append(part)
        return parts

    def take_output(self) -> tuple[Rows, HopTrace] | None:
        """The next output, with what its step took; None when there is none."""
        return self._outputs.popleft() if self._outputs else None

    def _blocks(self, num_rows: int, rationed: bool) -> int:
        """How many blocks rows of prefill go through in the next step; 0: it goes without them."""
        if self._mixed_steps and self._mixed_steps % PLAIN_STEP_EVERY == 0:
            return 0
        return self.budget.blocks(num_rows, self.depth) if rationed else self.depth

    def _batch(self, decode: list[_Session], beside: list[_Session], prefill: list[_Session], blocks: int = 0) -> Batch:
        """The rows that these sessions run, the prefill's through so many more blocks."""
        pauses, others = dict[str, int](), float(_rows_of(beside))
        for session in prefill:
            before, session.blocks = session.blocks, min(session.blocks + blocks, self.depth)
            others += session.running_rows * (session.blocks - before) / self.depth
            if session.blocks < self.depth:
                pauses[session.running[0].session] = session.blocks
        everyone = [*decode, *beside, *prefill]
        rows = [rows for session in everyone for rows in session.running]
        sessions = {session.running[0].session: session for session in everyone}
        names = [session.running[0].session for session in decode]
        return Batch(rows, sessions, pauses, names, _rows_of(decode), others, _rows_of(everyone), 0.0)

    def _measure(self, batch: Batch, done_rows: int, elapsed_s: float, now: float, found_rows: int) -> None:
        if not found_rows:  # else its time does not say what rows cost
            self.budget.measured(batch.decode_rows, batch.other_rows, elapsed_s, batch.held_s)
        if batch.decoding:
            self.delay.left(batch.decoding, elapsed_s, now)
        num_sessions, num_rows = len(batch.sessions), batch.decode_rows + batch.other_rows
        decoding = num_rows <= DECODE_ROWS * num_sessions
        self.stats.count(num_sessions, num_rows, done_rows, elapsed_s, decoding, found_rows)

    def _in_turn(self) -> list[_Session]:
        """All sessions whose rows wait: one of each client, then a second of each, and so on."""
        lines = [self._lines[client] for client in self._turns]
        longest = max(map(len, lines), default=0)
        return [line[place] for place in range(longest) for line in lines if place < len(line)]

    def _take(self, takes: list[tuple[_Session, int]]) -> list[_Session]:
        """Move rows of sessions, so many of each, from those that wait to those that run."""
        for session, num_rows in takes:
            session.take(num_rows)
        return [session for session, _ in takes]

    def _rotate(self, served: list[_Session]) -> None:
        """What was served goes to the end of its line, the client that got most last; what has no more rows leaves."""
        rows, taken = dict[str, int](), set(served)
        for session in served:
            rows[session.client] = rows.get(session.client, 0) + session.running_rows
        if len(self._turns) > 1:
            self._turns.sort(key=lambda client: rows.get(client, 0))
        for client in rows:
            if len(self._lines[client]) > 1:
                self._lines[client].sort(key=taken.__contains__)
        for session in served:
            self._dequeued(session, session.running_rows)

    def _dequeued(self, session: _Session, num_rows: int) -> None:
        """So many rows of a session wait no more."""
        self.queued_rows -= num_rows
        if session.waiting:
            return
        line = self._lines[session.client]
        line.remove(session)
        if not line:
            del self._lines[session.client]
            self._turns.remove(session.client)


class _Session:
    """One session's rows: those that wait, and those in a batch or between two blocks."""

    def __init__(self, client: str, background: bool) -> None:
        self.client = client
        self.background = background
        self.position = 0  # of the next rows to come
        self.waiting: deque[Rows] = deque()
        self.waiting_rows = 0
        self.running: list[Rows] = []
        self.blocks = 0  # that the running rows have gone through, or go through now
        self.spent_s = 0.0  # that their steps have taken so far

    @property
    def running_rows(self) -> int:
        """How many rows run."""
        return self.running[-1].stop - self.running[0].position if self.running else 0

    def rewind(self, position: int) -> int:
        """The rows from `position` on are void; how many of them waited. If some of them ran, the others begin anew."""
        before, self.position = self.waiting_rows, min(self.position, position)
        if self.waiting:
            self.waiting = deque(_below(self.waiting, position))
            self.waiting_rows = sum(rows.num_rows for rows in self.waiting)
        if self.running and self.running[-1].stop > position:
            self.running, self.blocks = _below(self.running, position), 0
        return before - self.waiting_rows

    def take(self, num_rows: int) -> None:
        """The next so many rows run."""
        self.waiting_rows -= num_rows
        while num_rows:
            rows = self.waiting.popleft()
            if rows.num_rows > num_rows:
                middle = rows.position + num_rows
                self.waiting.appendleft(rows.starting_at(middle))
                rows = rows.ending_at(middle)
            self.running.append(rows)
            num_rows -= rows.num_rows


def _rows_of(sessions: list[_Session]) -> int:
    return sum(session.running_rows for session in sessions)


def _below(sequence: Sequence[Rows], position: int) -> list[Rows]:
    """Of rows that follow one another those below a position."""
    kept = [rows for rows in sequence if rows.position < position]
    if kept and kept[-1].stop > position:
        kept[-1] = kept[-1].ending_at(position)
    return kept


def _fill(sessions: list[_Session], budget: int) -> list[tuple[_Session, int]]:
    """As many rows of each as wait, in this order, within a budget."""
    takes = []
    for session in sessions:
        num_rows = min(session.waiting_rows, budget)
        if num_rows == 0:
            break
        takes.append((session, num_rows))
        budget -= num_rows
    return takes


def _share(sessions: list[_Session], budget: int) -> list[tuple[_Session, int]]:
    """Divide a budget between the clients of these sessions: evenly, but what one does not need goes to the others."""
    lines: dict[str, list[_Session]] = {}
    for session in sessions:
        lines.setdefault(session.client, []).append(session)
    chosen = list(lines.values())[:budget]  # a row for each at least; the others are first next time
    # Those who need little come first, so that the rest is divided among those who need more. Of those who could use a whole
    # step the first in turn gets the odd row, not the one with most rows waiting.
    chosen.sort(key=lambda line: min(budget, sum(session.waiting_rows for session in line)))
    takes: list[tuple[_Session, int]] = []
    for place, line in enumerate(chosen):
        own = _fill(line, -(-budget // (len(chosen) - place)))
        budget -= sum(num_rows for _, num_rows in own)
        takes += own
    return takes
