"""The journaled row stream's rule as a pure state machine (docs/wire.md, "The rule").

`Receiver`, `Sender` and its `Cursor`s know positions and epochs, never rows, sockets or time. A hop owns a receiver and a
sender and calls `Sender.rewind` with whatever its receiver truncated; the client owns a sender towards the first hop and
a receiver from the last. A cursor is one link out of a sender: to the next hop, or to a follower that stands by.
"""

from __future__ import annotations

from typing import NamedTuple

from shoal.protocol.messages import ReceivedUpTo, ResumeFrom, Rewind, RowsFrame


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

    def attach(self) -> ReceivedUpTo:
        """A link begins: what to say on it first. Anything still under way on an older link must be dropped."""
        self._asked = True
        return ReceivedUpTo(self.epoch, self.position)

    def on_from(self, message: ResumeFrom) -> int | None:
        """The sender's answer; returns the position to truncate to, if any."""
        self._asked = False
        if message.epoch <= self.epoch:
            return None
        return self._enter(message.epoch, message.position)

    def on_rows(self, rows: RowsFrame) -> Taken | ReceivedUpTo | None:
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

    def resume(self, epoch: int, position: int) -> None:
        """A later process takes the stream up, and needs no rows below `position`."""
        self.epoch, self.position = epoch, position

    def _enter(self, epoch: int, position: int) -> int:
        self.epoch = epoch
        self.position = min(self.position, position)
        return self.position

    def _ask(self) -> ReceivedUpTo | None:
        # One question at a time: everything behind a gap is a gap as well until the answer comes.
        if self._asked:
            return None
        self._asked = True
        return ReceivedUpTo(self.epoch, self.position)


class Sender:
    """What one party has to send: rows from `base` (older ones are evicted) to `end`, as of `epoch`.

    `cursors` are the links that it sends on: the next hop's first, then followers'.
    """

    def __init__(self, epoch: int = 0, position: int = 0) -> None:
        self.epoch = epoch
        self.base = position
        self.end = position
        self.cursors: list[Cursor] = []
        self._rewinds: list[tuple[int, int]] = []

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
        for cursor in self.cursors:
            cursor.cut(position)

    def least(self, since: int) -> int | None:
        """The least base of all rewinds after epoch `since`."""
        return next((base for epoch, base in self._rewinds if epoch > since), None)


class Cursor:
    """One link's place in what a party sends."""

    def __init__(self, sender: Sender) -> None:
        self._sender = sender
        self._have: ReceivedUpTo | None = None
        self._next: int | None = None
        self._after = sender.epoch
        sender.cursors.append(self)

    def attach(self) -> None:
        """A link begins, or ends: nothing is sent before the receiver says what it has."""
        self._have = self._next = None

    def cut(self, position: int) -> None:
        """The sender was rewound to `position`."""
        if self._next is not None:
            self._next = min(self._next, position)

    def on_have(self, message: ReceivedUpTo) -> None:
        """The receiver's word; `answer` gives the reply as soon as there is one."""
        self._have, self._next = message, None

    def answer(self) -> ResumeFrom | None:
        """The reply to the last `have`, once; None while this side knows less than the receiver."""
        if self._have is None or self._have.epoch > self._sender.epoch:
            return None
        base = self._sender.least(self._have.epoch)
        self._next = self._have.position if base is None else min(self._have.position, base)
        self._have, self._after = None, self._sender.epoch
        return ResumeFrom(self._sender.epoch, self._next)

    @property
    def wanted(self) -> int | None:
        """The position that the receiver waits for, when the journal has dropped it."""
        return self._next if self._next is not None and self._next < self._sender.base else None

    @property
    def ready(self) -> int | None:
        """The position to send from, if there are rows to send."""
        if self._next is None or not self._sender.base <= self._next < self._sender.end:
            return None
        return self._next

    @property
    def unsent(self) -> int:
        """Rows that the receiver has not been sent."""
        sender = self._sender
        return sender.end - (sender.base if self._next is None else min(self._next, sender.end))

    def sent(self, count: int) -> int:
        """The next `count` rows went out; returns the frame's `after`."""
        if self._next is None or count < 1 or self._next + count > self._sender.end:
            raise ValueError(f"no {count} rows to send at {self._next} of {self._sender.base}:{self._sender.end}")
        self._next += count
        after, self._after = self._after, self._sender.epoch
        return after
