"""What steps have taken: counters and rates."""

from __future__ import annotations

from collections import Counter

WEIGHT = 0.1
"""Of a new measurement in the moving averages."""


class ComputeStats:
    """Counters and moving averages; rates are rows per second through the whole span."""

    def __init__(self) -> None:
        self.steps = 0
        self.rows = 0
        self.found_rows = 0
        self.batch_sessions: Counter[int] = Counter()
        self.decode_rows_per_s = 0.0
        self.prefill_rows_per_s = 0.0
        self.step_s = 0.0

    @property
    def max_batch_sessions(self) -> int:
        """The most sessions that shared a step."""
        return max(self.batch_sessions, default=0)

    def count(
        self, num_sessions: int, num_rows: float, done_rows: int, elapsed_s: float, decoding: bool, found_rows: int = 0
    ) -> None:
        """One step was made, after which `done_rows` have their outputs. Of `num_rows` those that went through a part of the
        blocks count as that part. Rows that were found in the prefix cache say nothing about how fast others are computed.
        """
        self.steps += 1
        self.rows += done_rows
        self.found_rows += found_rows
        self.batch_sessions[num_sessions] += 1
        if found_rows >= num_rows:
            return
        self.step_s = _average(self.step_s, elapsed_s)
        rate = (num_rows - found_rows) / max(elapsed_s, 1e-9)
        if decoding:
            self.decode_rows_per_s = _average(self.decode_rows_per_s, rate)
        else:
            self.prefill_rows_per_s = _average(self.prefill_rows_per_s, rate)


def _average(before: float, value: float) -> float:
    return value if before == 0 else before + WEIGHT * (value - before)
