"""Whether a step should wait a moment for those who usually come back together: a pure policy over times.

Sessions that decode leave a step together and come back one after the other. A step that starts with the first of them
splits them into two groups, each of which then waits for the other's step, for ever: twice the time for everybody. So the
thread waits for those who are due, as long as that is a small part of a step.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from math import inf
from typing import NamedTuple

SHARE = 0.5
"""Of a step's time, at most, that rows wait for others that are due. Two groups that alternate take two steps for a token;
one group takes one and the wait."""

MAX_HOLD_S = 0.25
"""And no longer than this, however slow the steps are."""

AWAY_S = 1.0
"""Who takes longer between two steps is not decoding but thinking."""

SHORT_STEP_S = 0.005
"""Steps that take no longer may be made in an event loop, which does nothing else meanwhile."""

MAX_REMEMBERED = 4096
"""Members remembered at once; when there are more, all are forgotten."""

WEIGHT = 0.2
"""Of a new measurement in the step's time."""


class BatchDelay:
    """Knows when each member of a step left it, how long it took to come back the last time, and how far behind the first.

    Times are in seconds of one clock that the caller chooses. A member that did not come back when it was due is not
    waited for again until it has come back once more: whoever is left alone waits once for each that left. `step_s` is the
    moving average of what steps took.
    """

    def __init__(self) -> None:
        self._away: dict[Hashable, float] = {}
        self._usual: dict[Hashable, _Usual] = {}
        self._first_back_at: dict[float, float] = {}
        self.step_s = 0.0

    def left(self, members: Iterable[Hashable], step_s: float, now: float) -> None:
        """A step that took `step_s` has ended for these."""
        if len(self._usual) + len(self._away) > MAX_REMEMBERED:
            self._away.clear()
            self._usual.clear()
        away = set(self._away.values())
        self._first_back_at = {left_at: back_at for left_at, back_at in self._first_back_at.items() if left_at in away}
        for member in members:
            self._away[member] = now
        self.step_s = step_s if self.step_s == 0 else self.step_s + WEIGHT * (step_s - self.step_s)

    def arrived(self, member: Hashable, now: float) -> None:
        """A member has come (back)."""
        left_at = self._away.pop(member, None)
        if left_at is not None:
            first_at = self._first_back_at.setdefault(left_at, now)
            self._usual[member] = _Usual(now - left_at, now - first_at)

    def forget(self, member: Hashable) -> None:
        """A member will not come back."""
        self._away.pop(member, None)
        self._usual.pop(member, None)

    @property
    def limit_s(self) -> float:
        """The longest wait."""
        return min(SHARE * self.step_s, MAX_HOLD_S)

    def hold_s(self, since: float, now: float) -> float:
        """How much longer to wait for members that are due, when a step could have begun at `since`; 0 for not at all."""
        until = since + self.limit_s
        due = [member for member in self._away if self._back_at(member) <= until]
        if now < until:
            return until - now if due else 0.0
        for member in due:
            self.forget(member)
        return 0.0

    def _back_at(self, member: Hashable) -> float:
        """When a member that is away should be back: steps vary, but those who left together come back together."""
        usual, left_at = self._usual.get(member), self._away[member]
        if usual is None:
            return inf
        first_at = self._first_back_at.get(left_at)
        return left_at + usual.turnaround_s if first_at is None else first_at + usual.lag_s

    def is_short_and_alone(self, now: float) -> bool:
        """Whether a step for one member may be made where its rows came: steps are short, and no other is about to come."""
        return 0 < self.step_s <= SHORT_STEP_S and not self.anybody_away(now)

    def anybody_away(self, now: float) -> bool:
        """Whether somebody is between two steps: came back within AWAY_S the last time, and is not long overdue."""
        for member, left_at in self._away.items():
            usual = self._usual.get(member)
            if (
                usual is not None
                and now - left_at <= 2 * usual.turnaround_s + self.limit_s
                and usual.turnaround_s <= AWAY_S
            ):
                return True
        return False


class _Usual(NamedTuple):
    """A member's last return: how long after it left, and how long after the first of those it left with."""

    turnaround_s: float
    lag_s: float
