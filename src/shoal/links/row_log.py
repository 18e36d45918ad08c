"""The rows that a party produced, and the links that carry them."""

from __future__ import annotations

from collections.abc import Callable

from shoal.links.row_sender import RowSender, Throttle
from shoal.protocol.journal import Journal, RowChunk
from shoal.protocol.row_stream import Sender


def _nothing() -> None:
    """For a log whose size is of no concern."""


class RowLog:
    """A journal and its senders: the one to the next hop, whose unsent rows count, and any number of others.

    `drained` is called when fewer rows are left to send.
    """

    def __init__(
        self, journal: Journal, throttle: Throttle | None = None, drained: Callable[[], None] = _nothing
    ) -> None:
        self.journal = journal
        self._throttle = throttle
        self._drained = drained
        self._senders: list[RowSender] = []
        self.next = self.add_sender()

    @property
    def sender(self) -> Sender:
        """What there is to send."""
        return self.journal.sender

    def add_sender(self) -> RowSender:
        """One more link out of this log, which lives as long."""
        sender = RowSender(self.journal, self._throttle, self._drained)
        self._senders.append(sender)
        return sender

    def append(self, chunk: RowChunk) -> None:
        """More rows to send."""
        self.journal.append(chunk)
        for sender in self._senders:
            sender.push()

    def rewind(self, epoch: int, position: int) -> None:
        """The stream continues at `position` in a higher epoch."""
        self.journal.rewind(epoch, position)
        for sender in self._senders:
            sender.push()
        self._drained()
