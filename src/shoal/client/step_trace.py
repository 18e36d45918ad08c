"""Where a step's time went."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from shoal.protocol.messages import HopTrace


class HopTime(msgspec.Struct, frozen=True):
    """One hop's part of a step, in seconds; `network_s` is from the party before it to this hop."""

    name: str
    network_s: float
    queue_s: float
    compute_s: float
    batch_sessions: int
    batch_rows: int


class StepTrace(msgspec.Struct, frozen=True):
    """A step from the moment its rows left the client's arithmetic until the answer reached it, in seconds."""

    total_s: float
    hops: tuple[HopTime, ...]
    return_s: float

    @property
    def compute_s(self) -> float:
        """What the hops computed."""
        return sum(hop.compute_s for hop in self.hops)

    @property
    def network_s(self) -> float:
        """Everything that was not computing: links, hand-overs and queues. Needs no agreement of clocks."""
        return max(0.0, self.total_s - self.compute_s)


def step_trace(
    sent_at: float, arrived_at: float, names: Sequence[str], hops: Sequence[HopTrace], offsets_s: Sequence[float]
) -> StepTrace:
    """A frame's trace on the client's clock.

    `offsets_s` are what each hop's clock is ahead of the client's. They are estimates: they move time between neighbouring
    links only, never the sum, and never so far that a link would have taken less than no time.
    """
    times: list[HopTime] = []
    left_at = sent_at
    busy_s = sum(hop.queue_s + hop.compute_s for hop in hops)
    for name, hop, offset_s in zip(names, hops, offsets_s, strict=True):
        received_at = max(left_at, min(hop.received_at - offset_s, arrived_at - busy_s))
        busy_s -= hop.queue_s + hop.compute_s
        times.append(
            HopTime(name, received_at - left_at, hop.queue_s, hop.compute_s, hop.batch_sessions, hop.batch_rows)
        )
        left_at = received_at + hop.queue_s + hop.compute_s
    return StepTrace(arrived_at - sent_at, tuple(times), max(0.0, arrived_at - left_at))
