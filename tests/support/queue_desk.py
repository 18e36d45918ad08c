"""A batch queue whose rows are numbers, for tests: sessions open by themselves, and steps end as soon as they begin."""

from __future__ import annotations

from shoal.engine.batch_queue import Batch, BatchQueue, Limits
from shoal.protocol.rows import Rows


class QueueDesk:
    """Submits rows that hold their positions, and computes by handing back what came."""

    def __init__(self, limits: Limits | None = None, depth: int = 1) -> None:
        self.queue = BatchQueue(limits, depth)
        self._sent: dict[str, int] = {}

    def add(self, session: str, client: str, num_rows: int, now: float = 0.0) -> None:
        """The next rows of a session of a client."""
        if session not in self._sent:
            self.queue.open(session, client)
            self._sent[session] = 0
        first = self._sent[session]
        self.queue.submit(Rows(session, first, range(first, first + num_rows)), now)
        self._sent[session] += num_rows

    def keep(self, session: str, num_rows: int) -> None:
        """Rewind a session so that it keeps so many of the rows that wait; nothing for one that was never there."""
        if session in self._sent:
            waiting = self.waiting(session)
            self._sent[session] -= max(0, waiting - num_rows)
            self.queue.rewind(session, self._sent[session])

    def waiting(self, session: str) -> int:
        """Rows of a session that wait."""
        return sum(rows.num_rows for rows in self.queue._sessions[session].waiting)

    def step(self, now: float = 0.0, elapsed_s: float = 0.0) -> dict[str, int]:
        """Make one step and take its outputs; returns the rows that each session had in it."""
        batch = self.queue.next_batch(now)
        self.finish(batch, now + elapsed_s)
        return taken(batch)

    def finish(self, batch: Batch, now: float) -> None:
        """End a step; its outputs are taken."""
        outputs = [rows.hidden_states[: 0 if rows.session in batch.pauses else None] for rows in batch.rows]
        self.queue.finish(batch, outputs, now)
        while self.queue.take_output() is not None:
            pass


def taken(batch: Batch) -> dict[str, int]:
    """The rows that each session has in a batch, in its order."""
    counts = dict[str, int]()
    for rows in batch.rows:
        counts[rows.session] = counts.get(rows.session, 0) + rows.num_rows
    return counts
