"""Which rows next: a pure policy over integers (continuous batching as in Orca, OSDI 2022; chunked prefill as in
Sarathi, arXiv:2308.16369)."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from typing import NamedTuple

from shoal.engine.batch_delay import BatchDelay
from shoal.engine.prefill_budget import PrefillBudget
from shoal.errors import ServerFull, UsageError

DECODE_ROWS = 8
"""A session with at most so many rows waiting is decoding (or verifying a draft); more are a prefill."""

PREFILL_CHUNK_ROWS = 64
"""Rows of prefill in one step, of all sessions together, when nobody decodes; beside decoding it is at most this. As many as a
client sends in a frame: a hop that computes two frames at once keeps the next hop waiting for both, and is no faster per row
where it was measured (two cores, one and two threads)."""

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
"""The advice of a full queue whose speed nobody has measured yet."""


class Take(NamedTuple):
    """The next `num_rows` rows of a session."""

    session: str
    num_rows: int


class Limits(NamedTuple):
    """The bounds of a scheduler; see the constants."""

    prefill_chunk_rows: int = PREFILL_CHUNK_ROWS
    max_step_rows: int = MAX_STEP_ROWS
    max_queued_rows: int = MAX_QUEUED_ROWS


class Scheduler:
    """Decode before prefill; turns between clients, then between a client's sessions; prefill always gets its share.

    What steps took (`done`) tells how many rows of prefill go beside decoding ones, and for whom a step waits (`hold_s`).
    Times are in seconds of one clock of the caller's.

    Sessions in the `background` (they stand by for a failure) get a few rows beside the others', or the whole step.

    A chunk of prefill beside decoding goes through some of the `depth` blocks in a step (`blocks`); no other is picked while it
    is under way.

    Raises UsageError for limits that leave no room for either.
    """

    def __init__(self, limits: Limits | None = None, depth: int = 1) -> None:
        self.depth = depth
        self.limits = limits or Limits()
        if self.limits.prefill_chunk_rows < 1 or self.limits.max_step_rows < 2 or self.limits.max_queued_rows < 1:
            raise UsageError(f"{self.limits}: a step has a row of prefill and one of decode, and a queue a row")
        self.queued_rows = 0
        self.background: set[str] = set()
        self.quantum = PrefillBudget()
        self.gathering = BatchDelay()
        self._decoding: set[str] = set()
        self._prefilling: set[str] = set()
        self._rationed = False
        self._mixed_steps = 0
        self._waiting: dict[str, int] = {}
        # Whoever was not served for longest stands first, in both.
        self._turns: deque[str] = deque()
        self._sessions: dict[str, deque[str]] = {}
        self._client: dict[str, str] = {}

    def add(self, session: str, client: str, num_rows: int, rows_per_s: float = 0.0, now: float = 0.0) -> None:
        """Queue one row or more, which came at `now`.

        Raises ServerFull when the queue is full, with the time that it takes to halve at `rows_per_s`, ValueError for
        no rows.
        """
        if num_rows < 1:
            raise ValueError(f"{num_rows} rows cannot be queued")
        if self.queued_rows + num_rows > self.limits.max_queued_rows:
            wait_s = self.queued_rows / 2 / rows_per_s if rows_per_s > 0 else RETRY_AFTER_S
            raise ServerFull(f"{self.queued_rows} rows are waiting already", retry_after=wait_s)
        self.queued_rows += num_rows
        self.gathering.arrived(session, now)
        if session not in self._waiting:
            self._client[session] = client
            if client not in self._sessions:
                self._sessions[client] = deque()
                self._turns.append(client)
            self._sessions[client].append(session)
        self._waiting[session] = self._waiting.get(session, 0) + num_rows

    def drop(self, session: str, keep_rows: int = 0) -> None:
        """Forget a session's queued rows but for the first `keep_rows`."""
        waiting = self._waiting.get(session, 0)
        if keep_rows < waiting:
            self._remove(session, waiting - keep_rows)

    def _remove(self, session: str, num_rows: int) -> None:
        self.queued_rows -= num_rows
        self._waiting[session] -= num_rows
        if self._waiting[session]:
            return
        del self._waiting[session]
        client = self._client.pop(session)
        self._sessions[client].remove(session)
        if not self._sessions[client]:
            del self._sessions[client]
            self._turns.remove(client)

    def forget(self, session: str) -> None:
        """A session is closed: its rows are dropped, and nobody waits for it."""
        self.drop(session)
        self.background.discard(session)
        self.gathering.forget(session)

    def hold_s(self, since: float, now: float) -> float:
        """How much longer a step that could have begun at `since` should wait for sessions that are due; 0: begin."""
        return self.gathering.hold_s(since, now)

    def is_prompt(self, now: float) -> bool:
        """Whether the next step is short, and one session's that decodes: nobody else waits or is about to come back."""
        return len(self._waiting) == 1 and self.queued_rows <= DECODE_ROWS and self.gathering.is_prompt(now)

    def done(
        self,
        takes: Sequence[Take],
        began_at: float,
        now: float,
        held_s: float = 0.0,
        whole: bool = True,
        share: float = 1.0,
    ) -> None:
        """A step of these rows has ended; it was held back for `held_s` before it began.

        `whole`: all rows were computed and none found, so that its time says what rows cost. `share`: the part of the blocks
        that rows of prefill went through.
        """
        decoding = [take for take in takes if take.session in self._decoding]
        rows = sum(take.num_rows for take in decoding)
        if whole:
            others = sum(take.num_rows for take in takes) - rows
            self.quantum.measured(rows, share * others, now - began_at, held_s)
        if decoding:
            self.gathering.left([take.session for take in decoding], now - began_at, now)

    def prefills(self, session: str) -> bool:
        """Whether what was picked last of a session is prefill, which may go through the blocks in several steps."""
        return session in self._prefilling

    def blocks(self, num_rows: int) -> int:
        """How many blocks rows of prefill under way go through in the step that was picked last; 0: it goes without them."""
        if self._mixed_steps and self._mixed_steps % PLAIN_STEP_EVERY == 0:
            return 0
        return self.quantum.blocks(num_rows, self.depth) if self._rationed else self.depth

    def _chunk_rows(self, decoding: bool, mixed: bool, now: float) -> int:
        """Rows of prefill that may be picked; `mixed`: there are some, or some under way, beside decoding ones."""
        self._rationed = decoding or self.gathering.anybody_away(now)
        self._mixed_steps = self._mixed_steps + 1 if mixed else 0
        whole = self.limits.prefill_chunk_rows
        return self.quantum.rows(whole, self.depth) if self._rationed else whole

    def pick(self, now: float = 0.0, under_way: Collection[str] = ()) -> list[Take]:
        """The next step's rows, taken off the queue; empty when nothing waits.

        Sessions whose rows are `under_way` are left out, and so is all prefill if there are any.
        """
        everybody = [session for session in self._in_turn() if session not in under_way]
        order = [session for session in everybody if session not in self.background]
        decoding = [session for session in order if self._waiting[session] <= DECODE_ROWS]
        prefilling = [session for session in order if self._waiting[session] > DECODE_ROWS]
        mixed = bool(decoding and (under_way or prefilling))
        prefilling = [] if under_way else prefilling
        chunk, most = self._chunk_rows(bool(decoding), mixed, now), self.limits.max_step_rows
        kept_free = chunk if prefilling else self.limits.prefill_chunk_rows if under_way else 0
        takes = self._fill(decoding, most - min(kept_free, most // 2))
        takes += self._share(prefilling, min(chunk, most - sum(take.num_rows for take in takes)))
        self._decoding, self._prefilling = set(decoding), set(prefilling)
        beside = [session for session in everybody if session in self.background]
        room = most - sum(take.num_rows for take in takes)
        takes += self._share(
            beside, min(room, BACKGROUND_ROWS if takes or under_way else self.limits.prefill_chunk_rows)
        )
        served = {self._client[take.session]: 0 for take in takes}
        for take in takes:
            served[self._client[take.session]] += take.num_rows
        self._rotate(served, {take.session for take in takes})
        for take in takes:
            self._remove(take.session, take.num_rows)
        return takes

    def _in_turn(self) -> list[str]:
        """All waiting sessions: one of each client, then a second of each, and so on."""
        order: list[str] = []
        queues = [iter(self._sessions[client]) for client in self._turns]
        while queues:
            heads = [(queue, next(queue, None)) for queue in queues]
            order += [session for _, session in heads if session is not None]
            queues = [queue for queue, session in heads if session is not None]
        return order

    def _fill(self, sessions: list[str], budget: int) -> list[Take]:
        """As many rows as there are, in this order, within a budget."""
        takes = []
        for session in sessions:
            num_rows = min(self._waiting[session], budget)
            if num_rows == 0:
                break
            takes.append(Take(session, num_rows))
            budget -= num_rows
        return takes

    def _share(self, sessions: list[str], budget: int) -> list[Take]:
        """Divide a budget between the clients that prefill: evenly, but what one does not need goes to the others."""
        queues: dict[str, list[str]] = {}
        for session in sessions:
            queues.setdefault(self._client[session], []).append(session)
        chosen = list(queues.values())[:budget]  # a row for each at least; the others are first next time
        # Whoever needs little comes first, so that the rest is divided among those who need more; of whoever could use a
        # whole step the first in turn gets the odd row, not the one with most rows waiting.
        chosen.sort(key=lambda queue: min(budget, sum(self._waiting[session] for session in queue)))
        takes: list[Take] = []
        for place, queue in enumerate(chosen):
            own = self._fill(queue, -(-budget // (len(chosen) - place)))
            budget -= sum(take.num_rows for take in own)
            takes += own
        return takes

    def _rotate(self, served: dict[str, int], taken: set[str]) -> None:
        """Whoever was served goes to the end of its line, the client that got most last."""
        self._turns = deque(sorted(self._turns, key=lambda client: served.get(client, 0)))
        for client in served:
            self._sessions[client] = deque(sorted(self._sessions[client], key=taken.__contains__))
