"""The two ends of a link: an `RowSender` sends a feed's rows, an `RowReceiver` takes them (docs/wire.md, "Rows").

Both outlive their channels: `serve` runs one channel until it breaks, and a newer channel replaces an older one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Protocol

from shoal.errors import ProtocolError
from shoal.protocol.journal import Journal, RowChunk
from shoal.protocol.messages import LINK, ReceivedUpTo, Refusal, ResumeFrom, RowsFrame
from shoal.protocol.refusals import refused
from shoal.protocol.row_stream import Cursor, Receiver, Sender, Taken
from shoal.transport.frame_channel import FrameChannel


class Throttle(Protocol):
    """Makes senders wait so that a rate is kept."""

    async def take(self, size_bytes: int) -> None:
        """Wait until `size_bytes` may be sent."""
        ...


class RowLog:
    """A journal and the links that carry it: `next` to the next hop, `follower` to one that stands by."""

    def __init__(self, journal: Journal, throttle: Throttle | None = None) -> None:
        self.journal = journal
        self.drained = asyncio.Event()
        self.next = RowSender(self, throttle)
        self.follower = RowSender(self, throttle)

    @property
    def sender(self) -> Sender:
        """What there is to send."""
        return self.journal.sender

    def append(self, chunk: RowChunk) -> None:
        """More rows to send."""
        self.journal.append(chunk)
        self.next.push()
        self.follower.push()

    def rewind(self, epoch: int, position: int) -> None:
        """The stream continues at `position` in a higher epoch."""
        self.journal.rewind(epoch, position)
        self._wake()
        self.drained.set()

    def detach(self) -> None:
        """Drop the channels of both links."""
        self.next.detach()
        self.follower.detach()
        self.drained.set()

    def _wake(self) -> None:
        self.next.wake.set()
        self.follower.wake.set()


class RowSender:
    """Sends a feed's rows to whoever is attached. `elide` is set on the link to the client."""

    def __init__(self, feed: RowLog, throttle: Throttle | None = None) -> None:
        self.elide = False
        self.on_gone: Callable[[int], None] | None = None
        self.wake = asyncio.Event()
        self._feed = feed
        self._cursor = Cursor(feed.journal.sender)
        self._throttle = throttle
        self._channel: FrameChannel | None = None
        self._resting = False

    def detach(self) -> None:
        """Drop the present channel, if there is one."""
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.abort()

    def push(self) -> None:
        """There are more rows: send them now where that needs no waiting; the rest is for the sending task."""
        while self._resting and self._channel is not None and self._throttle is None and self._channel.sends_now:
            frame = self._feed.journal.next_frame(self._cursor, self.elide)
            if frame is None:
                return
            self._feed.drained.set()
            self._channel.send_now(*frame)
        self.wake.set()

    async def serve(self, channel: FrameChannel, have: ReceivedUpTo | None = None) -> None:
        """Send on this channel until it breaks or is replaced.

        Raises ChannelClosed when it breaks, ProtocolError for anything but `have`, and what a refusal stands for.
        """
        self.detach()
        self._channel = channel
        self._cursor.attach()
        if have is not None:
            self._cursor.on_have(have)
        self.wake.set()
        tasks = [asyncio.ensure_future(self._listen(channel)), asyncio.ensure_future(self._pump(channel))]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if self._channel is channel:
                self._channel = None
                self._cursor.attach()

    async def _listen(self, channel: FrameChannel) -> None:
        while self._channel is channel:
            message, _ = await channel.receive(LINK)
            if isinstance(message, Refusal):
                raise refused(message, channel.peer)
            if not isinstance(message, ReceivedUpTo):
                raise ProtocolError(f"peer {channel.peer[:8]} sent {type(message).__name__} to a sender of rows")
            if self._channel is channel:
                self._cursor.on_have(message)
                self.wake.set()

    async def _pump(self, channel: FrameChannel) -> None:
        while self._channel is channel:
            answer = self._cursor.answer()
            if answer is not None:
                await channel.send(answer)
                continue
            frame = self._feed.journal.next_frame(self._cursor, self.elide)
            if frame is not None:
                self._feed.drained.set()
                if self._throttle is not None:
                    await self._throttle.take(len(frame[1]))
                await channel.send(*frame)
                continue
            wanted = self._cursor.wanted
            if wanted is not None and self.on_gone is not None:
                self.on_gone(wanted)
            self.wake.clear()
            self._resting = True
            try:
                await self.wake.wait()
            finally:
                self._resting = False


class RowSink(Protocol):
    """What an inlet does with what it receives."""

    def check(self, rows: RowsFrame, payload: bytes) -> None:
        """Raises ProtocolError or GrantExceeded for rows that must not be taken; called before anything changes."""
        ...

    def truncate(self, position: int) -> None:
        """Rows from `position` on are void; the receiver is in its new epoch already."""
        ...

    def ready(self, rows: RowsFrame) -> bool:
        """Whether `take` would take this frame without waiting."""
        ...

    def take_now(self, rows: RowsFrame, payload: bytes) -> None:
        """As `take`, all rows of a frame, right after `ready`."""
        ...

    async def take(self, rows: RowsFrame, payload: bytes, skip: int) -> None:
        """New rows: those of the frame but the first `skip`. May wait, which holds the sender back."""
        ...


class RowReceiver:
    """Takes rows from whoever is attached and hands on what is new."""

    def __init__(self, receiver: Receiver, taker: RowSink) -> None:
        self.receiver = receiver
        self._taker = taker
        self._channel: FrameChannel | None = None
        self._idle = False

    def detach(self) -> None:
        """Drop the present channel, if there is one."""
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.abort()

    def attach(self, channel: FrameChannel) -> ReceivedUpTo:
        """This channel replaces the present one; returns what the sender must be told."""
        self.detach()
        self._channel = channel
        return self.receiver.attach()

    async def serve(self, channel: FrameChannel) -> None:
        """Receive on an attached channel until it breaks or is replaced.

        Raises ChannelClosed when it breaks, ProtocolError for a message that has no place here, and what a refusal
        stands for.
        """
        channel.tap(LINK, partial(self._at_once, channel))
        try:
            while self._channel is channel:
                self._idle = True
                message, payload = await channel.receive(LINK)
                self._idle = False
                if self._channel is channel:
                    await self._on_message(channel, message, payload)
        finally:
            channel.tap(LINK, None)
            if self._channel is channel:
                self._channel = None

    def _at_once(self, channel: FrameChannel, message: object, payload: bytes) -> bool:
        """Take the frame that is due next without a task's turn in between; all others are left for `serve`."""
        due = self.receiver.epoch, self.receiver.position
        if not (
            self._idle and self._channel is channel and isinstance(message, RowsFrame) and self._taker.ready(message)
        ):
            return False
        if (message.epoch, message.position) != due:
            return False
        self._taker.check(message, payload)
        self.receiver.on_rows(message)
        self._taker.take_now(message, payload)
        return True

    async def _on_message(self, channel: FrameChannel, message: object, payload: bytes) -> None:
        if isinstance(message, RowsFrame):
            self._taker.check(message, payload)
            verdict = self.receiver.on_rows(message)
            if isinstance(verdict, Taken):
                if verdict.truncate_to is not None:
                    self._taker.truncate(verdict.truncate_to)
                await self._taker.take(message, payload, verdict.skip)
            elif verdict is not None:
                await channel.send(verdict)
        elif isinstance(message, ResumeFrom):
            truncate_to = self.receiver.on_from(message)
            if truncate_to is not None:
                self._taker.truncate(truncate_to)
        elif isinstance(message, Refusal):
            raise refused(message, channel.peer)
        else:
            raise ProtocolError(f"peer {channel.peer[:8]} sent {type(message).__name__} to a receiver of rows")
