"""What the client sees of a link at its own ends: who keeps rows back."""

from __future__ import annotations

from typing import Literal

from shoal.client.session.hop_client import DIAL_S, HopClient
from shoal.clock import Clock
from shoal.links.link import LinkKey
from shoal.protocol.journal import FRAME_ROWS
from shoal.protocol.row_stream import Receiver

Part = Literal["send", "receive"]


class Mark:
    """A place in the stream, and when it was noted. A new one is noted a frame of rows later: fewer may only seem to go on."""

    def __init__(self, epoch: int, position: int, at: float) -> None:
        self.epoch = epoch
        self.position = position
        self.at = at

    def note(self, epoch: int, position: int, now: float) -> None:
        """Something is there now."""
        if epoch != self.epoch or position >= self.position + FRAME_ROWS:
            self.epoch, self.position, self.at = epoch, position, now


class LinkWatch:
    """Of a link that begins or ends at the client, or that it carries: then `receiver` is what it has had of the sender.

    A hop cannot talk itself out of this: only what came over the client's own channels counts, beside where the next hop says
    it is.
    """

    def __init__(self, key: LinkKey[HopClient], receiver: Receiver, clock: Clock) -> None:
        self._key = key
        self._receiver = receiver
        self._clock = clock
        self._made_at = clock.monotonic()
        self._attached_at: dict[Part, float] = {}
        self._had = Mark(receiver.epoch, receiver.position, self._made_at)
        self._taken = Mark(0, 0, self._made_at)
        self._more_since = 0.0
        self._has_more = False

    def attached(self, part: Part) -> None:
        """The client has a channel to that end; one that breaks and comes again changes nothing."""
        self._attached_at.setdefault(part, self._clock.monotonic())

    def suspect(self) -> tuple[HopClient, float] | None:
        """Who keeps rows back, if rows are kept back, and since when that has been all that was seen."""
        sender, receiver, _ = self._key
        now = self._clock.monotonic()
        self._had.note(self._receiver.epoch, self._receiver.position, now)
        if receiver is not None:
            self._look_at(receiver, now)
        if receiver is None or (sender is not None and not self._has_more):
            return None if sender is None else (sender, max(self._since("receive"), self._had.at))
        return receiver, max(self._since("send"), self._more_since, self._taken.at)

    def _look_at(self, receiver: HopClient, now: float) -> None:
        """How far the receiver says it is, and since when the client has had more."""
        progress = receiver.heartbeat.progress
        self._taken.note(progress.epoch, progress.position, now)
        has_more = (self._receiver.epoch, self._receiver.position) > (progress.epoch, progress.position)
        if has_more and not self._has_more:
            self._more_since = now
        self._has_more = has_more

    def _since(self, part: Part) -> float:
        return self._attached_at.get(part, self._made_at + DIAL_S)
