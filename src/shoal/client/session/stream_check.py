"""What the client, from which every row and every rewind of a session comes, holds against a hop's words."""

from __future__ import annotations

from shoal.errors import WrongRows
from shoal.protocol.messages import Pong, ResumeFrom, RowsFrame
from shoal.protocol.row_stream import Sender


class StreamCheck:
    """Raises WrongRows for what there is not in the client's own stream, `sender`. One for each hop."""

    def __init__(self, sender: Sender) -> None:
        self._sender = sender
        self._told = Pong(0, 0.0, 0.0)

    def rows(self, rows: RowsFrame) -> None:
        """A frame of rows: none is beyond what was sent."""
        self._known("rows", rows.epoch, rows.position + rows.count)

    def resumed(self, message: ResumeFrom) -> None:
        """Where a sender goes on: a later epoch would void what is here, and all that honest hops send."""
        self._known("rows", message.epoch, 0)

    def progress(self, pong: Pong) -> None:
        """How far a hop says it is: within an epoch it only goes on, so that its words come to an end as the rows do."""
        self._known("word", pong.epoch, pong.position)
        before, self._told = self._told, pong
        goes_on = pong.position >= before.position and pong.computed >= before.computed
        if pong.epoch < before.epoch or (pong.epoch == before.epoch and not goes_on):
            raise WrongRows(f"it says that it is at {_place(pong)}, and was at {_place(before)} before")

    def _known(self, what: str, epoch: int, stop: int) -> None:
        sender = self._sender
        if epoch > sender.epoch:
            text = f"{what} of epoch {epoch} came; this session is in {sender.epoch}"
            raise WrongRows(text, relayed=True, ahead=True)
        if epoch == sender.epoch and stop > sender.end:
            raise WrongRows(f"{what} of {stop} rows came; only {sender.end} were sent", relayed=True, ahead=True)


def _place(pong: Pong) -> str:
    return f"{pong.computed} of {pong.position} rows of epoch {pong.epoch}"
