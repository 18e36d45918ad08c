"""Which rows next: a pure policy over integers (continuous batching as in Orca, OSDI 2022; chunked prefill as in
Sarathi, arXiv:2308.16369)."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from shoal.errors import ServerFull

DECODE_ROWS = 8
"""A session with at most so many rows waiting is decoding (or verifying a draft); more are a prefill."""

PREFILL_CHUNK_ROWS = 128
"""Rows of prefill in one step, of all sessions together, while somebody decodes."""

MAX_STEP_ROWS = 512
"""Rows in one step."""

MAX_QUEUED_ROWS = 65_536
"""Rows that may wait in all."""


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
    """Decode before prefill; turns between clients, then between a client's sessions; prefill always gets its chunk."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.queued_rows = 0
        self._waiting: dict[str, int] = {}
        self._turns: deque[str] = deque()
        self._sessions: dict[str, deque[str]] = {}
        self._client: dict[str, str] = {}

    def add(self, session: str, client: str, num_rows: int, rows_per_s: float = 0.0) -> None:
        """Queue rows; raises ServerFull when the queue is full, with the time that it takes to halve at `rows_per_s`."""
        if self.queued_rows + num_rows > self.limits.max_queued_rows:
            wait_s = self.queued_rows / 2 / rows_per_s if rows_per_s > 0 else 1.0
            raise ServerFull(f"{self.queued_rows} rows are waiting already", retry_after=wait_s)
        self.queued_rows += num_rows
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

    def pick(self) -> list[Take]:
        """The next step's rows, taken off the queue; empty when nothing waits."""
        order = self._in_turn()
        decoding = [session for session in order if self._waiting[session] <= DECODE_ROWS]
        prefilling = [session for session in order if self._waiting[session] > DECODE_ROWS]
        reserved = min(self.limits.prefill_chunk_rows, self.limits.max_step_rows // 2) if prefilling else 0
        takes = self._fill(decoding, self.limits.max_step_rows - reserved)
        used = sum(take.num_rows for take in takes)
        budget = self.limits.prefill_chunk_rows if takes else self.limits.max_step_rows
        takes += self._share(prefilling, min(budget, self.limits.max_step_rows - used))
        for take in takes:
            self._remove(take.session, take.num_rows)
        self._rotate({take.session for take in takes})
        return takes

    def _in_turn(self) -> list[str]:
        """All waiting sessions: one of each client, then a second of each, and so on."""
        queues = [list(self._sessions[client]) for client in self._turns]
        longest = max(map(len, queues), default=0)
        return [queue[turn] for turn in range(longest) for queue in queues if turn < len(queue)]

    def _fill(self, sessions: list[str], budget: int) -> list[Take]:
        takes = []
        for session in sessions:
            num_rows = min(self._waiting[session], budget)
            if num_rows:
                takes.append(Take(session, num_rows))
                budget -= num_rows
        return takes

    def _share(self, sessions: list[str], budget: int) -> list[Take]:
        """Divide a budget evenly between the clients that prefill; one session of each at a time."""
        firsts: dict[str, str] = {}
        for session in sessions:
            firsts.setdefault(self._client[session], session)
        takes: list[Take] = []
        for place, session in enumerate(firsts.values()):
            share = -(-budget // (len(firsts) - place))
            num_rows = min(self._waiting[session], share)
            if num_rows:
                takes.append(Take(session, num_rows))
                budget -= num_rows
        return takes

    def _rotate(self, taken: set[str]) -> None:
        """Whoever was served goes to the end of its line."""
        for client in list(self._turns):
            queue = self._sessions[client]
            served = [session for session in queue if session in taken]
            for session in served:
                queue.remove(session)
                queue.append(session)
        if self._turns:
            self._turns.rotate(-1)
