"""The journaled row stream's rule as a pure state machine (docs/wire.md, "The rule").

`Receiver` and `Sender` know positions and epochs, never rows, sockets or time. A hop owns one of each and calls
`Sender.rewind` with whatever its receiver truncated; the client owns a sender towards the first hop and a receiver from
the last.
"""

from __future__ import annotations

from typing import NamedTuple

from shoal.wire.messages import From, Have, Rewind, Rows


class Taken(NamedTuple):
    """Rows to take: leave out the first `skip`; before that truncate to `truncate_to`, unless it is None."""

    skip: int
    truncate_to: int | None = None


class Receiver:
    """What one party has received of the stream: all rows below `position`, as of `epoch`."""

    def __init__(self, epoch: int = 0, position: int = 0) -> None:
        self.epoch = epoch
        self.position = position
        self._asked = False

    def attach(self) -> Have:
        """A link begins: what to say on it first. Anything still under way on an older link must be dropped."""
        self._asked = True
        return Have(self.epoch, self.position)

    def on_from(self, message: From) -> int | None:
        """The sender's answer; returns the position to truncate to, if any."""
        self._asked = False
        if message.epoch <= self.epoch:
            return None
        return self._enter(message.epoch, message.position)

    def on_rows(self, rows: Rows) -> Taken | Have | None:
        """What to do with a frame of rows: take (part of) it, ask for what is missing, or (None) drop it."""
        if rows.epoch < self.epoch:
            return None
        if rows.position > self.position or (rows.epoch > self.epoch and rows.after != self.epoch):
            return self._ask()
        if rows.epoch == self.epoch:
            if rows.position + rows.count <= self.position:
                return None
            skip, truncate_to = self.position - rows.position, None
        else:
            skip, truncate_to = 0, self._enter(rows.epoch, rows.position)
        self._asked = False
        self.position = rows.position + rows.count
        return Taken(skip, truncate_to)

    def on_rewind(self, message: Rewind) -> int | None:
        """The client's word on the control channel; returns the position to truncate to, if it applies."""
        if not message.since <= self.epoch < message.epoch:
            return None
        return self._enter(message.epoch, message.position)

    def _enter(self, epoch: int, position: int) -> int:
        self.epoch = epoch
        self.position = min(self.position, position)
        return self.position

    def _ask(self) -> Have | None:
        # One question at a time: everything behind a gap is a gap as well until the answer comes.
        if self._asked:
            return None
        self._asked = True
        return Have(self.epoch, self.position)


class Sender:
    """What one party has to send: rows from `base` (older ones are evicted) to `end`, as of `epoch`."""

    def __init__(self, epoch: int = 0, position: int = 0) -> None:
        self.epoch = epoch
        self.base = position
        self.end = position
        self._rewinds: list[tuple[int, int]] = []
        self._have: Have | None = None
        self._cursor: int | None = None
        self._after = epoch

    def append(self, count: int) -> None:
        """`count` more rows of the present epoch are there to send."""
        self.end += count

    def evict(self, position: int) -> None:
        """Rows below `position` are no longer kept."""
        self.base = max(self.base, position)

    def rewind(self, epoch: int, position: int) -> None:
        """The stream now continues at `position` in a higher epoch."""
        if epoch <= self.epoch:
            raise ValueError(f"epoch {epoch} does not follow epoch {self.epoch}")
        self.epoch = epoch
        self.end = min(self.end, position)
        self.base = min(self.base, self.end)
        # A rewind further back makes the ones before it irrelevant, so bases grow with their epochs.
        while self._rewinds and self._rewinds[-1][1] >= position:
            self._rewinds.pop()
        self._rewinds.append((epoch, position))
        if self._cursor is not None:
            self._cursor = min(self._cursor, position)

    def least(self, since: int) -> int | None:
        """The least base of all rewinds after epoch `since`."""
        return next((base for epoch, base in self._rewinds if epoch > since), None)

    def attach(self) -> None:
        """A link begins, or ends: nothing is sent before the receiver says what it has."""
        self._have = self._cursor = None

    def on_have(self, message: Have) -> None:
        """The receiver's word; `answer` gives the reply as soon as there is one."""
        self._have, self._cursor = message, None

    def answer(self) -> From | None:
        """The reply to the last `have`, once; None while this side knows less than the receiver."""
        if self._have is None or self._have.epoch > self.epoch:
            return None
        base = self.least(self._have.epoch)
        self._cursor = self._have.position if base is None else min(self._have.position, base)
        self._have, self._after = None, self.epoch
        return From(self.epoch, self._cursor)

    @property
    def wanted(self) -> int | None:
        """The position that the receiver waits for, when the journal has dropped it."""
        return self._cursor if self._cursor is not None and self._cursor < self.base else None

    @property
    def ready(self) -> int | None:
        """The position to send from, if there are rows to send."""
        if self._cursor is None or not self.base <= self._cursor < self.end:
            return None
        return self._cursor

    @property
    def unsent(self) -> int:
        """Rows that the receiver has not been sent."""
        return self.end - (self.base if self._cursor is None else min(self._cursor, self.end))

    def sent(self, count: int) -> int:
        """The next `count` rows went out; returns the frame's `after`."""
        if self._cursor is None or count < 1 or self._cursor + count > self.end:
            raise ValueError(f"no {count} rows to send at {self._cursor} of {self.base}:{self.end}")
        self._cursor += count
        after, self._after = self._after, self.epoch
        return after
