"""What a channel has received, on its way into the sink."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from shoal.transport.channel import ChannelSink

PAUSE_BYTES = 256 * 1024
"""Bytes held for want of a sink at which the source is asked to pause."""


def _nothing() -> None:
    """For a source that needs no pauses."""


def _uncounted(size_bytes: int) -> None:
    """For a source that does not count what the sink was given."""


class Inbox:
    """Bytes in order, then an end, pushed into a sink; held while there is no sink and while it has paused.

    `pause` and `resume` are the source's; `delivered` is told how many bytes the sink was given.
    """

    def __init__(
        self,
        pause: Callable[[], None] = _nothing,
        resume: Callable[[], None] = _nothing,
        delivered: Callable[[int], None] = _uncounted,
    ) -> None:
        self._pause_source, self._resume_source = pause, resume
        self._delivered = delivered
        self._sink: ChannelSink | None = None
        self._held = bytearray()
        self._returned_bytes = 0  # of those held, at the front: a sink was given them before
        self._paused = False  # by the sink
        self._source_paused = False
        self._ended = False
        self._error: Exception | None = None
        self._told = False  # the sink knows the end

    def __len__(self) -> int:
        return len(self._held)

    def put(self, data: bytes) -> None:
        """Bytes that arrived; after the end they are dropped."""
        if self._ended:
            return
        if self._sink is not None and not self._paused and not self._held:
            self._sink.data_received(data)
            self._delivered(len(data))
            return
        self._held += data
        if len(self._held) >= PAUSE_BYTES:
            self._set_source(paused=True)

    def end(self, error: Exception | None = None) -> None:
        """No more will come; the first call counts. The sink is told after the bytes that are held."""
        if not self._ended:
            self._ended, self._error = True, error
            self._push()

    def drop(self, error: Exception) -> None:
        """End it on this side: what is held is not wanted any more."""
        self._held.clear()
        self._returned_bytes, self._paused = 0, False
        self.end(error)
        self._push()

    def attach(self, sink: ChannelSink) -> None:
        """Push into this sink from now on, what is held first."""
        self._sink, self._paused, self._told = sink, False, False
        self._push()

    def detach(self, unused: bytes) -> None:
        """The sink leaves; what it has not used goes to the next one."""
        self._sink, self._paused = None, False
        self._held[:0] = unused
        self._returned_bytes += len(unused)

    def pause(self) -> None:
        """The sink has too much."""
        self._paused = True
        self._set_source(paused=True)

    def resume(self) -> None:
        """The sink has room; what is held follows in a later turn, so that the sink may call this from anywhere."""
        if self._paused:
            self._paused = False
            asyncio.get_running_loop().call_soon(self._push)

    def _push(self) -> None:
        while self._held and self._sink is not None and not self._paused:
            data, new_bytes = bytes(self._held), len(self._held) - self._returned_bytes
            self._held.clear()
            self._returned_bytes = 0
            self._sink.data_received(data)
            self._delivered(new_bytes)
        if self._held or self._paused or self._sink is None:
            return
        self._set_source(paused=False)
        if self._ended and not self._told:
            self._told = True
            self._sink.connection_lost(self._error)

    def _set_source(self, paused: bool) -> None:
        if paused != self._source_paused:
            self._source_paused = paused
            (self._pause_source if paused else self._resume_source)()


class InboxChannel:
    """The receiving half of a channel: what arrives goes through its inbox."""

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox

    def attach(self, sink: ChannelSink) -> None:
        """Channel: push into this sink."""
        self._inbox.attach(sink)

    def detach(self, unused: bytes) -> None:
        """Channel: the sink leaves."""
        self._inbox.detach(unused)

    def pause_reading(self) -> None:
        """Channel: the sink has too much; the source is paused, or gets no more credit."""
        self._inbox.pause()

    def resume_reading(self) -> None:
        """Channel: the sink has room."""
        self._inbox.resume()
