"""Faults at the transport seam: corrupted bytes, and links that a command changes while they are in use."""

from __future__ import annotations

import random

from shoal.clock import SYSTEM_CLOCK
from shoal.transport.channel import Channel, ChannelHandler, ForwardingChannel, ForwardingTransport, Transport
from shoal.types import PeerId
from tests.support.emulated_links import LinkedTransport
from tests.support.link_plan import EmulatedLink, LinkPlan

CORRUPTIBLE_BYTES = 200
"""Only sends of this size or more are corrupted: rows, not greetings."""


class Faults:
    """What goes wrong at one node: `plan` for its links, `corrupt` sends that still get a wrong byte."""

    def __init__(self, seed: int = 0) -> None:
        self.plan = LinkPlan()
        self.corrupt = 0
        self._rng = random.Random(seed)

    def wrap(self, inner: Transport, me: PeerId) -> Transport:
        """A transport with these faults."""
        return LinkedTransport(_CorruptingTransport(inner, self), me, self.plan, SYSTEM_CLOCK, self._rng)

    def set_links(self, me: PeerId, peers: list[PeerId], link: EmulatedLink) -> None:
        """Change the links to some peers, both ways."""
        for peer in peers:
            self.plan.set(me, peer, link)

    def spoil(self, data: bytes) -> bytes:
        """The data, perhaps with one bit turned."""
        if self.corrupt == 0 or len(data) < CORRUPTIBLE_BYTES:
            return data
        self.corrupt -= 1
        at = self._rng.randrange(len(data))
        return data[:at] + bytes([data[at] ^ 1 << self._rng.randrange(8)]) + data[at + 1 :]


class _CorruptingChannel(ForwardingChannel):
    def __init__(self, inner: Channel, faults: Faults) -> None:
        super().__init__(inner)
        self._faults = faults

    def write(self, data: bytes | bytearray) -> None:
        self._inner.write(self._faults.spoil(bytes(data)))


class _CorruptingTransport(ForwardingTransport):
    def __init__(self, inner: Transport, faults: Faults) -> None:
        super().__init__(inner)
        self._faults = faults

    async def listen(self, handler: ChannelHandler) -> None:
        await self._inner.listen(lambda channel: handler(_CorruptingChannel(channel, self._faults)))

    async def dial(self, peer: PeerId, address: str) -> Channel:
        return _CorruptingChannel(await self._inner.dial(peer, address), self._faults)
