"""The sending end of a link."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Protocol

from shoal.errors import ChannelClosed, ProtocolError
from shoal.protocol.journal import Journal
from shoal.protocol.messages import LINK, LinkMessage, ReceivedUpTo, Refusal
from shoal.protocol.refusals import refused
from shoal.protocol.row_stream import Cursor
from shoal.transport.frame_channel import FrameChannel


class Throttle(Protocol):
    """Makes senders wait so that a rate is kept."""

    async def take(self, size_bytes: int) -> None:
        """Wait until `size_bytes` may be sent."""
        ...


def _no_news(position: int) -> None:
    """For a link whose receiver finds out by itself."""


def _nothing() -> None:
    """For a log whose size is of no concern."""


class RowSender:
    """Sends a journal's rows to whoever receives them; outlives its channels, and has one cursor.

    `push` sends in the call of the producer, as far as the channel has room and there is no throttle; a task sends the rest.
    `sent` is called when fewer rows are left to send.
    """

    def __init__(self, journal: Journal, throttle: Throttle | None = None, sent: Callable[[], None] = _nothing) -> None:
        self._journal = journal
        self._throttle = throttle
        self._sent = sent
        self._cursor = Cursor(journal.sender)
        self._frames: FrameChannel | None = None
        self._elide = False
        self._dropped: Callable[[int], None] = _no_news
        self._told: int | None = None  # what `_dropped` was told last
        self._left_over = asyncio.Event()  # the task has to send what `push` could not

    def detach(self) -> None:
        """Drop the present channel, if there is one."""
        frames, self._frames = self._frames, None
        if frames is not None:
            self._cursor.attach()
            frames.abort()

    def push(self) -> None:
        """There may be something to send: send it, or leave it to the task."""
        frames = self._frames
        if frames is None or self._left_over.is_set():
            return
        if self._throttle is None and frames.writable:
            while (following := self._next()) is not None:
                frames.send_nowait(*following)
                if not frames.writable:
                    break
            else:
                return
        self._left_over.set()

    def _next(self) -> tuple[LinkMessage, bytes] | None:
        """What to send next; the answer to `have` goes first."""
        answer = self._cursor.answer()
        if answer is not None:
            self._sent()  # the receiver may have more than this side has sent
            return answer, b""
        frame = self._journal.next_frame(self._cursor, self._elide)
        if frame is not None:
            self._sent()
            return frame
        wanted = self._cursor.wanted
        if wanted is not None and wanted != self._told:
            self._told = wanted
            self._dropped(wanted)
        return None

    async def serve(
        self,
        frames: FrameChannel,
        have: ReceivedUpTo | None = None,
        elide: bool = False,
        dropped: Callable[[int], None] = _no_news,
    ) -> None:
        """Send on this channel, which replaces the present one, until it breaks or is replaced.

        `have` is the receiver's word if it has come already. `elide` leaves out the bytes of rows that the client does not
        need. `dropped` is told the position of rows that the receiver lacks and the journal has dropped.
        Raises ChannelClosed when the channel breaks, ProtocolError for anything but `have`, and what a refusal stands for.
        """
        self.detach()
        self._frames, self._elide, self._dropped = frames, elide, dropped
        self._told = None
        self._left_over.clear()
        self._cursor.attach()
        if have is not None:
            self._cursor.on_have(have)
        error: Exception
        try:
            async with asyncio.TaskGroup() as tasks:
                waiting = tasks.create_task(self._send_left_over(frames))
                self.push()
                try:
                    await frames.deliver_to(LINK, self._on_message)
                except Exception as caught:  # raised below: a task group would wrap it
                    error = caught
                waiting.cancel()
        finally:
            if self._frames is frames:
                self._frames = None
                self._cursor.attach()
        raise error

    def _on_message(self, message: LinkMessage, payload: bytes) -> None:
        frames = self._frames
        if frames is None:
            return
        if isinstance(message, Refusal):
            raise refused(message, frames.peer)
        if not isinstance(message, ReceivedUpTo):
            raise ProtocolError(f"peer {frames.peer[:8]} sent {type(message).__name__} to a sender of rows")
        frames.was_idle()
        self._cursor.on_have(message)
        self.push()

    async def _send_left_over(self, frames: FrameChannel) -> None:
        with contextlib.suppress(ChannelClosed):  # `serve` raises it
            while True:
                await self._left_over.wait()
                await frames.drain()
                while self._frames is frames and (following := self._next()) is not None:
                    if self._throttle is not None:
                        await self._throttle.take(len(following[1]))
                    await frames.send(*following)
                self._left_over.clear()
