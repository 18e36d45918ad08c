"""What a hop's heartbeats tell: whether it lives, how far it is, and what its clock says."""

from __future__ import annotations

from shoal.clock import Clock
from shoal.protocol.journal import FRAME_ROWS
from shoal.protocol.messages import Ping, Pong

PING_ACTIVE_S = 0.25
PING_IDLE_S = 2.0
"""Heartbeats while a step is under way, and while none is."""

SILENCE_S = 1.25
"""A hop that was not heard for this long is dead."""

EXCUSED_S = 1.5
"""While a connection was broken its hop could not tell what it did: when it is back, what was quiet counts for so long."""


class Heartbeat:
    """One hop's. `progress` is what it said last, `heard_at` when; times are monotonic seconds.

    `changed_at`: when it last told of other rows. `stepped_at`: the same, or of another step, which may have been for others.
    `worked_at`: when it last told of a frame of rows more that it had computed, or of all that it had, or of the first that it
    had still to compute: one row after another is no work. `answers`: how many pings it has answered.
    """

    def __init__(self, clock: Clock) -> None:
        self.progress = Pong(0, 0.0, 0.0)
        self.heard_at = clock.monotonic()
        self.changed_at = self.stepped_at = self.worked_at = self.heard_at
        self.round_trip_s = float("inf")
        self.clock_offset_s = 0.0
        self.answers = 0
        self._worked_from = 0
        self._active = False
        self._excused: Pong | None = None
        self._pings: dict[int, tuple[float, float]] = {}
        self._next_ping = 0
        self._clock = clock

    @property
    def active(self) -> bool:
        """Whether a step is under way: heartbeats are frequent then."""
        return self._active

    def set_active(self, active: bool) -> None:
        """A step begins, or ends."""
        if active and not self._active:
            self.restart()
        self._active = active

    @property
    def interval_s(self) -> float:
        """Between two heartbeats."""
        return PING_ACTIVE_S if self._active else PING_IDLE_S

    def restart(self) -> None:
        """What was not heard until now proves nothing."""
        self._pings.clear()
        self.heard_at = self._clock.monotonic()
        self.changed_at = self.stepped_at = self.worked_at = self.heard_at

    def reconnected(self) -> None:
        """A new connection: its silence until now proves nothing, and its idleness little, once for each frame of rows."""
        self._pings.clear()
        self.heard_at = self._clock.monotonic()
        if self._excused is None or _went_on(self._excused, self.progress):
            self._excused, least = self.progress, self.heard_at - EXCUSED_S
            self.changed_at, self.stepped_at = max(self.changed_at, least), max(self.stepped_at, least)
            self.worked_at = max(self.worked_at, least)

    def silent(self, now: float) -> bool:
        """Whether the hop has been asked and not been heard for SILENCE_S."""
        if not self._pings:
            return False
        oldest = next(iter(self._pings.values()))[1]
        return now - max(self.heard_at, oldest - PING_ACTIVE_S) > SILENCE_S

    def ping(self) -> Ping:
        """The next heartbeat, to be sent at once."""
        self._pings[self._next_ping] = (self._clock.wall(), self._clock.monotonic())
        self._next_ping += 1
        return Ping(self._next_ping - 1)

    def on_pong(self, message: Pong) -> bool:
        """Note progress; keep the offset between the two wall clocks, as NTP does, from the fastest exchange.

        False for the answer to a ping that was not sent.
        """
        if message.id >= self._next_ping:
            return False
        self.answers += 1
        self.hear(message)
        sent = self._pings.pop(message.id, None)
        if sent is None:
            return True
        for older in [id_ for id_ in self._pings if id_ < message.id]:
            del self._pings[older]
        now = self._clock.wall()
        round_trip_s = (now - sent[0]) - (message.sent_at - message.received_at)
        if round_trip_s <= self.round_trip_s:
            self.round_trip_s = round_trip_s
            self.clock_offset_s = ((message.received_at - sent[0]) + (message.sent_at - now)) / 2
        return True

    def hear(self, message: Pong) -> None:
        """The hop is alive, and this far."""
        before, self.progress = self.progress, message
        self.heard_at = self._clock.monotonic()
        if _rows(before) != _rows(message):
            self.changed_at = self.stepped_at = self.heard_at
        if before.steps != message.steps:
            self.stepped_at = self.heard_at
        had_work = before.epoch == message.epoch and before.position > before.computed
        frame_more = message.computed >= min(self._worked_from + FRAME_ROWS, message.position)
        if not had_work or frame_more:
            self.worked_at, self._worked_from = self.heard_at, message.computed


def _went_on(before: Pong, now: Pong) -> bool:
    """Whether a hop has got on by a frame of rows since, or by all that it has."""
    if _rows(before) == _rows(now):
        return False
    computed = now.computed >= min(before.computed + FRAME_ROWS, now.position)
    return before.epoch != now.epoch or now.position >= before.position + FRAME_ROWS or computed


def _rows(pong: Pong) -> tuple[int, int, int]:
    return pong.epoch, pong.position, pong.computed
