"""What the client sees of a link at its own ends: who keeps rows back."""

from __future__ import annotations

from typing import Literal

from shoal.client.session.hop_client import DIAL_S, HopClient
from shoal.clock import Clock
from shoal.links.link import LinkKey
from shoal.protocol.row_stream import Receiver

Part = Literal["send", "receive"]


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
        self._moved_at = self._made_at
        self._had = (receiver.epoch, receiver.position)

    def attached(self, part: Part) -> None:
        """The client has a channel to that end; one that breaks and comes again changes nothing."""
        self._attached_at.setdefault(part, self._clock.monotonic())

    def suspect(self) -> tuple[HopClient, float] | None:
        """Who keeps rows back, if rows are kept back, and since when that has been all that was seen."""
        had = (self._receiver.epoch, self._receiver.position)
        if had != self._had:
            self._had, self._moved_at = had, self._clock.monotonic()
        sender, receiver, _ = self._key
        if receiver is None or (sender is not None and not self._has_more(receiver)):
            return None if sender is None else (sender, self._since("receive"))
        return receiver, max(self._since("send"), receiver.heartbeat.changed_at)

    def _has_more(self, receiver: HopClient) -> bool:
        """Whether the client has had more rows than the receiver says it has."""
        progress = receiver.heartbeat.progress
        return self._had > (progress.epoch, progress.position)

    def _since(self, part: Part) -> float:
        attached_at = self._attached_at.get(part, self._made_at + DIAL_S)
        return max(attached_at, self._moved_at)
