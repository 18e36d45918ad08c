"""The receiving end of a link."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from shoal.errors import ProtocolError, WrongRows
from shoal.protocol.messages import LINK, LinkMessage, ReceivedUpTo, Refusal, ResumeFrom, RowsFrame
from shoal.protocol.refusals import refused
from shoal.protocol.row_stream import Receiver, Taken
from shoal.transport.frame_channel import FrameChannel
from shoal.types import PeerId

MAX_REPEATED_ROWS = 4096
"""Rows known already that a sender may send beyond twice those that there are: honest ones begin where they were told."""

MAX_STALE_ROWS = 1 << 18
"""Rows of an epoch that is over: honest ones were on their way when it ended."""


class RowSink(Protocol):
    """What becomes of the rows that a `RowReceiver` takes. Nothing here waits."""

    @property
    def full(self) -> bool:
        """Whether no more rows should come for now; `RowReceiver.resume` ends that."""
        ...

    def check(self, rows: RowsFrame, payload: bytes) -> None:
        """Raises ProtocolError or GrantExceeded for rows that must not be taken; called before anything changes."""
        ...

    def truncate(self, position: int) -> None:
        """Rows from `position` on are void; the receiver is in its new epoch already."""
        ...

    def take(self, rows: RowsFrame, payload: bytes, skip: int) -> None:
        """New rows: those of the frame but the first `skip`."""
        ...


def _unchecked(message: ResumeFrom) -> None:
    """For a hop, which knows the stream from those before it."""


class RowReceiver:
    """Takes rows from whoever sends them and hands on what is new; outlives its channels.

    `check_from` raises WrongRows for a sender that goes on where it cannot.
    """

    def __init__(
        self, receiver: Receiver, sink: RowSink, check_from: Callable[[ResumeFrom], None] = _unchecked
    ) -> None:
        self.receiver = receiver
        self._sink = sink
        self._check_from = check_from
        self._frames: FrameChannel | None = None
        self._paused = False
        self._repeated = self._stale = 0

    def detach(self) -> None:
        """Drop the present channel, if there is one."""
        frames, self._frames = self._frames, None
        self._paused = False
        if frames is not None:
            frames.abort()

    def attach(self, frames: FrameChannel) -> ReceivedUpTo:
        """This channel replaces the present one; returns what the sender must be told."""
        self.detach()
        self._frames = frames
        self._repeated = self._stale = 0
        return self.receiver.attach()

    async def serve(self, frames: FrameChannel) -> None:
        """Receive on an attached channel until it breaks or is replaced.

        Raises ChannelClosed when it breaks, ProtocolError for a message that has no place here, what a refusal stands for,
        and what the sink raises.
        """
        try:
            if self._frames is frames:
                await frames.deliver_to(LINK, self.on_frame)
        finally:
            if self._frames is frames:
                self._frames, self._paused = None, False

    def resume(self) -> None:
        """Let rows come again, if the sink was full and is no longer."""
        if self._paused and self._frames is not None and not self._sink.full:
            self._paused = False
            self._frames.resume_reading()

    def on_frame(self, message: LinkMessage, payload: bytes) -> None:
        """The next message on the attached channel; raises what `serve` raises."""
        if isinstance(message, RowsFrame):
            self._on_rows(message, payload)
        elif isinstance(message, ResumeFrom):
            self._check_from(message)
            self._idle()
            truncate_to = self.receiver.on_from(message)
            if truncate_to is not None:
                self._sink.truncate(truncate_to)
        elif isinstance(message, Refusal):
            raise refused(message, self._peer)
        else:
            raise ProtocolError(f"peer {self._peer[:8]} sent {type(message).__name__} to a receiver of rows")

    def _on_rows(self, rows: RowsFrame, payload: bytes) -> None:
        self._sink.check(rows, payload)
        verdict = self.receiver.on_rows(rows)
        if isinstance(verdict, Taken):
            if verdict.truncate_to is not None:
                self._sink.truncate(verdict.truncate_to)
                self._idle()  # a sender may begin anew again and again
            self._repeated = self._stale = 0
            self._sink.take(rows, payload, verdict.skip)
            if self._frames is not None and self._sink.full:
                self._paused = True
                self._frames.pause_reading()
        elif verdict is None:
            self._idle()
            self._on_known(rows)
        elif self._frames is not None:
            self._idle()
            if not self._frames.writable:
                raise ProtocolError(f"peer {self._peer[:8]} does not read what it is asked")
            self._frames.send_nowait(verdict)

    def _idle(self) -> None:
        if self._frames is not None:
            self._frames.was_idle()

    def _on_known(self, rows: RowsFrame) -> None:
        """Rows that are dropped: without end they would keep this side busy, and nothing would come of it."""
        if rows.epoch < self.receiver.epoch:
            self._stale += rows.count
        else:
            self._repeated += rows.count
        if self._stale > MAX_STALE_ROWS or self._repeated > 2 * self.receiver.position + MAX_REPEATED_ROWS:
            raise WrongRows(f"peer {self._peer[:8]} sends rows again and again that are here already")

    @property
    def _peer(self) -> PeerId:
        return self._frames.peer if self._frames is not None else PeerId("")
