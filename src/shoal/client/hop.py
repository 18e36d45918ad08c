"""A session's control channel to one hop, the client's side."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from shoal.clock import Clock
from shoal.errors import NetworkError, ProtocolError, RecordError, ShoalError
from shoal.net.dial import Dialler
from shoal.net.framed import FrameChannel, refused
from shoal.swarm.records import SignedRecord
from shoal.types import Hop, PeerId
from shoal.wire.messages import (
    Attach,
    Attached,
    Close,
    LinkGrant,
    LinkState,
    Open,
    Opened,
    Ping,
    Pong,
    Redirect,
    Refused,
    Rewind,
)
from shoal.wire.stream import Sender

PING_ACTIVE_S = 0.25
PINGS_IDLE = 8
"""While nothing is under way, only every so many of the active pings is sent."""

SILENCE_S = 10.0
"""A control channel without an answer for this long is dialled again."""

RECONNECT_S = 10.0
"""How long a link or control channel is dialled again before its session fails."""

REDIAL_S = 0.1


class SessionKeys(msgspec.Struct, frozen=True):
    """What proves a session to be the client's."""

    session: bytes
    secret: bytes
    incarnation: int = 0


class HopControl:
    """Opens a session at a hop, gives it orders, and keeps its lease alive."""

    def __init__(self, hop: Hop, record: SignedRecord, keys: SessionKeys, dialler: Dialler, clock: Clock) -> None:
        self.hop = hop
        self.record = record
        self.active = False
        self.on_news: Callable[[HopControl, LinkState], None] = lambda hop, state: None
        self._keys = keys
        self._dialler = dialler
        self.clock = clock
        self._channel: FrameChannel | None = None
        self._ready = asyncio.Event()
        self._known_epoch = 0
        self._pings: dict[int, float] = {}
        self._best_rtt_s = float("inf")
        self.clock_offset_s = 0.0

    @property
    def name(self) -> str:
        """The server's name for people."""
        return self.record.record.name or self.hop.peer[:8]

    @property
    def round_trip_s(self) -> float:
        """The shortest ping so far; infinite before the first."""
        return self._best_rtt_s

    async def dial(self) -> FrameChannel:
        """A new channel to this hop; raises what the dialler raises."""
        return FrameChannel(await self._dialler.dial(PeerId(self.hop.peer), self.record.record.addresses))

    async def open(self, request: Open) -> Opened:
        """Ask for the session; raises what the refusal stands for."""
        try:
            self._channel = await self.dial()
            await self._channel.send(request)
            opened, _ = await self._channel.expect(Opened)
        except ShoalError as error:
            error.peer = self.hop.peer  # whoever plans the route wants to know which hop to avoid
            raise
        if opened.max_tokens < request.max_tokens:
            raise ProtocolError(f"{self.name} granted {opened.max_tokens} tokens of {request.max_tokens}")
        self._known_epoch = opened.epoch
        return opened

    async def redirect(self, link: LinkGrant, record: bytes = b"", acceptance: bytes = b"") -> None:
        """Tell the hop where its output goes, and wait until it knows. `serve` must be running."""
        self._ready.clear()
        await self._present().send(Redirect(link, record, acceptance))
        await self._ready.wait()

    async def rewind(self, sender: Sender) -> None:
        """Tell the hop of the rewinds that it may not know. A broken channel is no error: data carries rewinds too."""
        base = sender.least(self._known_epoch)
        if base is None or self._channel is None:
            return
        message = Rewind(sender.epoch, base, self._known_epoch)
        self._known_epoch = sender.epoch
        try:
            await self._channel.send(message)
        except NetworkError:
            self._channel.abort()

    async def close(self) -> None:
        """Tell the hop that the session is over."""
        channel, self._channel = self._channel, None
        if channel is None:
            return
        try:
            await channel.send(Close())
            await channel.close()
        except NetworkError:
            channel.abort()  # it will find out when the lease ends

    def _present(self) -> FrameChannel:
        if self._channel is None:
            raise ProtocolError(f"the session at {self.name} is not open")
        return self._channel

    async def serve(self, sender: Sender) -> None:
        """Ping, listen and dial again until the session fails.

        Raises NetworkError when the hop stays away for RECONNECT_S, SessionLost when it has lost the session, and what a
        refusal stands for when the hop ends it.
        """
        while True:
            listening = asyncio.ensure_future(self._listen())
            pinging = asyncio.ensure_future(self._ping())
            try:
                done, _ = await asyncio.wait((listening, pinging), return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            except NetworkError:
                self._present().abort()
            finally:
                listening.cancel()
                pinging.cancel()
                await asyncio.gather(listening, pinging, return_exceptions=True)
            await self._reattach(sender)

    async def _reattach(self, sender: Sender) -> None:
        deadline = self.clock.monotonic() + RECONNECT_S
        while True:
            try:
                channel = await self.dial()
                keys = self._keys
                await channel.send(Attach("control", keys.session, keys.incarnation, keys.secret))
                attached, _ = await channel.expect(Attached)
                break
            except NetworkError as error:
                if self.clock.monotonic() > deadline:
                    raise NetworkError(f"{self.name} (blocks {self.hop.span}) is out of reach: {error}") from error
                await self.clock.sleep(REDIAL_S)
        self._channel = channel
        self._known_epoch = attached.epoch
        await self.rewind(sender)

    async def _listen(self) -> None:
        while True:
            message, _ = await self._present().receive()
            if isinstance(message, Pong):
                self._on_pong(message)
            elif isinstance(message, LinkState):
                self._ready.set()
                self.on_news(self, message)
            elif isinstance(message, Refused):
                raise refused(message, PeerId(self.hop.peer))
            else:
                raise ProtocolError(f"{self.name} sent {type(message).__name__} on a control channel")

    async def _ping(self) -> None:
        self._pings.clear()
        count = 0
        while True:
            if self.active or count % PINGS_IDLE == 0:
                now = self.clock.wall()
                if self._pings and now - next(iter(self._pings.values())) > SILENCE_S:
                    raise NetworkError(f"{self.name} has not answered for {SILENCE_S:.0f} s")
                self._pings[count] = now
                await self._present().send(Ping(count))
            count += 1
            await self.clock.sleep(PING_ACTIVE_S)

    def _on_pong(self, message: Pong) -> None:
        """Keep the offset between the two wall clocks, as NTP does, from the fastest exchange."""
        sent_at = self._pings.pop(message.id, None)
        if sent_at is None:
            raise RecordError(f"{self.name} answered a ping that was not sent")
        now = self.clock.wall()
        round_trip_s = (now - sent_at) - (message.sent_at - message.received_at)
        if round_trip_s <= self._best_rtt_s:
            self._best_rtt_s = round_trip_s
            self.clock_offset_s = ((message.received_at - sent_at) + (message.sent_at - now)) / 2
