"""A server that lies: a real one, whose messages are changed on their way. One class for each lie.

`LIES` has them by name. A lie begins after `HONEST_FRAMES` frames of rows, so that it comes in the middle of a reply.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import struct
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import msgspec

from shoal.errors import ChannelClosed, SessionFenced, ShoalError
from shoal.protocol.frames import MAX_PAYLOAD_BYTES, FrameDecoder, encode_frame
from shoal.protocol.journal import FRAME_ROWS
from shoal.protocol.messages import (
    MAX_POSITION,
    Admitted,
    Attached,
    Close,
    HopTrace,
    Leaving,
    LinkState,
    Message,
    Opened,
    Pong,
    ReceivedUpTo,
    ResumeFrom,
    RowsFrame,
    encode_message,
)
from shoal.protocol.refusals import refusal
from shoal.transport.channel import (
    Channel,
    ChannelHandler,
    ChannelSink,
    ForwardingChannel,
    ForwardingTransport,
    Transport,
)
from shoal.types import PeerId
from tests.support.any_message import ANY

HONEST_FRAMES = 6
"""Frames of rows that come before the lie: a prompt of a few frames and some tokens."""

MANY = 1 << 40
Sent = tuple[Message, bytes]


class Lie:
    """Changes nothing. `begun` says whether it is time; `rows` counts what has come in, `computed` what was told last."""

    def __init__(self) -> None:
        self.frames = 0
        self.rows = 0
        self.told: Pong | None = None

    @property
    def begun(self) -> bool:
        """Whether enough was done honestly."""
        return self.frames >= HONEST_FRAMES

    def received(self, message: Message) -> bool:
        """Whether the server gets to see what came."""
        if isinstance(message, RowsFrame):
            self.frames += 1
            self.rows = message.position + message.count
            return not self.begun or self.takes_rows
        return True

    at_once = False
    """Whether it lies before it has any rows."""

    takes_rows = True

    def sent(self, message: Message, payload: bytes, channel: LyingChannel) -> Iterator[Sent]:
        """What goes out instead."""
        if isinstance(message, Pong):
            told = self.pong(message) if self.begun else message
            self.told = told
            yield told, payload
        elif isinstance(message, RowsFrame) and self.begun:
            yield from self.outputs(message, payload, channel)
        else:
            yield from self.other(message, payload, channel)

    def pong(self, pong: Pong) -> Pong:
        """What it says of its progress."""
        return pong

    def outputs(self, rows: RowsFrame, payload: bytes, channel: LyingChannel) -> Iterator[Sent]:
        """What it sends on."""
        yield rows, payload

    def other(self, message: Message, payload: bytes, channel: LyingChannel) -> Iterator[Sent]:
        """All other messages, and rows before the lie begins."""
        yield message, payload


M = TypeVar("M", bound=msgspec.Struct)


def _with(message: M, **fields: Any) -> M:
    return msgspec.structs.replace(message, **fields)


# Rows that cannot be


class NotANumber(Lie):
    """Rows with one NaN at their end."""

    last = struct.pack("<f", math.nan)

    def outputs(self, rows: RowsFrame, payload: bytes, channel: LyingChannel) -> Iterator[Sent]:
        yield rows, payload[:-4] + self.last


class Infinite(NotANumber):
    """Rows with one infinite number."""

    last = struct.pack("<f", -math.inf)


class Elided(Lie):
    """Every row is left out."""

    def outputs(self, rows: RowsFrame, payload: bytes, channel: LyingChannel) -> Iterator[Sent]:
        yield _with(rows, elided=rows.count), b""


class NotNeeded(Lie):
    """It says that the client needs no output of these rows, so that the last hop leaves them out."""

    def outputs(self, rows: RowsFrame, payload: bytes, channel: LyingChannel) -> Iterator[Sent]:
        yield _with(rows, reply=0), payload


class Short(Lie):
    """A payload that lacks a byte."""

    def outputs(self, rows: RowsFrame, payload: bytes, channel: LyingChannel) -> Iterator[Sent]:
        yield rows, payload[:-1]


class Long(Lie):
    """A payload of a row more than it says."""

    def outputs(self, rows: RowsFrame, payload: bytes, channel: LyingChannel) -> Iterator[Sent]:
        yield rows, payload * 2


class Miscounted(Lie):
    """A row more than there are bytes for."""

    def outputs(self, rows: RowsFrame, payload: bytes, channel: LyingChannel) -> Iterator[Sent]:
        yield _with(rows, count=rows.count + 1), payload


class Unasked(Lie):
    """Rows beyond the whole stream, in one frame with those that it was sent: fewer, or later, may have been asked for."""

    def outputs(self, rows: RowsFrame, payload: bytes, channel: LyingChannel) -> Iterator[Sent]:
        row_bytes = len(payload) // (rows.count - rows.elided)
        yield _with(rows, count=rows.count + FRAME_ROWS), payload + FRAME_ROWS * payload[-row_bytes:]


class LaterEpoch(Lie):
    """Rows of an epoch that the client has not begun."""

    def outputs(self, rows: RowsFrame, payload: bytes, channel: LyingChannel) -> Iterator[Sent]:
        yield _with(rows, epoch=MANY, after=rows.epoch), payload


class LaterStart(Lie):
    """It goes on in an epoch that the client has not begun, from where everything is void."""

    def outputs(self, rows: RowsFrame, payload: bytes, channel: LyingChannel) -> Iterator[Sent]:
        yield ResumeFrom(MANY, 0), b""
        yield rows, payload


class Travelled(Lie):
    """A trace that has no room for the next hop."""

    def outputs(self, rows: RowsFrame, payload: bytes, channel: LyingChannel) -> Iterator[Sent]:
        yield _with(rows, trace=(HopTrace(0.0, 0.0, 0.0),) * 128), payload


# Rows that do not come


class Mute(Lie):
    """It computes, and sends nothing."""

    def outputs(self, rows: RowsFrame, payload: bytes, channel: LyingChannel) -> Iterator[Sent]:
        yield from ()


class MuteAndBusy(Mute):
    """The same, and it counts steps all the time."""

    def pong(self, pong: Pong) -> Pong:
        return _with(pong, steps=pong.id)


class Duplicates(Lie):
    """The same rows, without end, instead of the next ones."""

    def __init__(self) -> None:
        super().__init__()
        self.frame: Sent | None = None

    def other(self, message: Message, payload: bytes, channel: LyingChannel) -> Iterator[Sent]:
        if isinstance(message, RowsFrame):
            self.frame = message, payload
        yield message, payload

    def outputs(self, rows: RowsFrame, payload: bytes, channel: LyingChannel) -> Iterator[Sent]:
        frame = self.frame or (_with(rows, position=0), payload)
        channel.flood(*frame)
        yield frame


class Deaf(Lie):
    """It takes rows and says that it has none."""

    takes_rows = False


class DeafAndBusy(Deaf):
    """The same, and it counts steps all the time."""

    def pong(self, pong: Pong) -> Pong:
        return _with(pong, steps=pong.id)


class Idle(Lie):
    """It has the rows, as it says, and computes none."""

    takes_rows = False

    def pong(self, pong: Pong) -> Pong:
        return _with(pong, position=self.rows)


class Busy(Idle):
    """The same, and it counts steps all the time."""

    def pong(self, pong: Pong) -> Pong:
        return _with(pong, position=self.rows, steps=pong.id, step_s=0.1)


class Slow(Idle):
    """The same, with steps that take a day."""

    def pong(self, pong: Pong) -> Pong:
        return _with(pong, position=self.rows, step_s=86_400.0)


class Wavering(Deaf):
    """It says that it has the rows, and that it has none of them, in turn."""

    def pong(self, pong: Pong) -> Pong:
        return _with(pong, position=self.rows if pong.id % 2 else 0, computed=0)


class Sipping(Deaf):
    """It takes one row more at every heartbeat, as it says, and computes it."""

    def pong(self, pong: Pong) -> Pong:
        taken = min(self.rows, pong.id)
        return _with(pong, position=taken, computed=taken)


class Recomputing(Idle):
    """It has computed some more at every heartbeat, and begins again when it has all."""

    def pong(self, pong: Pong) -> Pong:
        return _with(pong, position=self.rows, computed=pong.id % self.rows, steps=pong.id)


class Ahead(Deaf):
    """It says that it has computed more than it was sent."""

    def pong(self, pong: Pong) -> Pong:
        return _with(pong, position=self.rows + 1000, computed=self.rows + 1000)


class Elsewhere(Deaf):
    """It says that it is in an epoch that the client has not begun."""

    def pong(self, pong: Pong) -> Pong:
        return _with(pong, epoch=MANY)


class Wordless(Lie):
    """It never says what it has, so that nothing is sent to it."""

    at_once = True

    def other(self, message: Message, payload: bytes, channel: LyingChannel) -> Iterator[Sent]:
        if not isinstance(message, ReceivedUpTo):
            yield message, payload


# Orders


class Unopened(Lie):
    """It never answers who opens a session."""

    at_once = True

    def other(self, message: Message, payload: bytes, channel: LyingChannel) -> Iterator[Sent]:
        if not isinstance(message, Opened):
            yield message, payload


class Disobedient(Lie):
    """It opens a session and never answers an order."""

    at_once = True

    def other(self, message: Message, payload: bytes, channel: LyingChannel) -> Iterator[Sent]:
        if not isinstance(message, Admitted | LinkState):
            yield message, payload


class Forged(Lie):
    """What it signs, so that the hop before may feed it, is for nobody."""

    at_once = True

    def other(self, message: Message, payload: bytes, channel: LyingChannel) -> Iterator[Sent]:
        if isinstance(message, Opened | Admitted):
            message = _with(message, acceptance=bytes(len(message.acceptance)))
        yield message, payload


class Fenced(Lie):
    """It says that a later process has the session."""

    takes_rows = False

    def sent(self, message: Message, payload: bytes, channel: LyingChannel) -> Iterator[Sent]:
        if isinstance(message, Pong) and self.begun:
            yield refusal(SessionFenced("a later process has it")), b""
        else:
            yield from super().sent(message, payload, channel)


class Refusing(Lie):
    """It refuses every link, as if the other side had broken the rules."""

    at_once = True

    def other(self, message: Message, payload: bytes, channel: LyingChannel) -> Iterator[Sent]:
        yield (refusal(ShoalError("no")), b"") if isinstance(message, ReceivedUpTo) else (message, payload)


class Flapping(Lie):
    """Its control channel breaks at every heartbeat."""

    takes_rows = False

    def sent(self, message: Message, payload: bytes, channel: LyingChannel) -> Iterator[Sent]:
        if isinstance(message, Pong) and self.begun:
            channel.abort()
        else:
            yield from super().sent(message, payload, channel)


class AtOnce(Mute):
    """It lies from the first rows on, and sends none."""

    at_once = True

    @property
    def begun(self) -> bool:
        return True


class Breaking(AtOnce):
    """Its control channel breaks every second, when it has rows."""

    beats = 4

    def sent(self, message: Message, payload: bytes, channel: LyingChannel) -> Iterator[Sent]:
        yield from super().sent(message, payload, channel)
        if isinstance(message, Pong) and self.rows and message.id % self.beats == self.beats - 1:
            self.broke()
            channel.abort()

    def broke(self) -> None:
        """It did just now."""


class Excused(Breaking):
    """It computes and sends one row more each time that its control channel breaks."""

    def __init__(self) -> None:
        super().__init__()
        self.done = 0
        self.made: list[tuple[RowsFrame, bytes, LyingChannel]] = []

    def pong(self, pong: Pong) -> Pong:
        return _with(pong, position=self.rows, computed=self.done)

    def outputs(self, rows: RowsFrame, payload: bytes, channel: LyingChannel) -> Iterator[Sent]:
        row_bytes = len(payload) // max(1, rows.count - rows.elided)
        for number in range(rows.count):
            left_out = number < rows.elided
            start = (number - rows.elided) * row_bytes
            row = b"" if left_out else payload[start : start + row_bytes]
            frame = _with(rows, position=rows.position + number, count=1, elided=int(left_out))
            self.made.append((frame, row, channel))
        yield from ()

    def broke(self) -> None:
        if self.made:
            frame, row, channel = self.made.pop(0)
            self.done = frame.position + 1
            channel.send_now(frame, row)


class Forgetful(Breaking):
    """It computes nothing, and has no rows, as it says, each time that its control channel is back."""

    def pong(self, pong: Pong) -> Pong:
        return _with(pong, position=self.rows)

    def other(self, message: Message, payload: bytes, channel: LyingChannel) -> Iterator[Sent]:
        yield (_with(message, position=0) if isinstance(message, Attached) else message), payload


class FarAhead(Forgetful):
    """It has more rows than there are, as it says, each time that its control channel is back, and none otherwise."""

    def pong(self, pong: Pong) -> Pong:
        return _with(pong, position=0, computed=0)

    def other(self, message: Message, payload: bytes, channel: LyingChannel) -> Iterator[Sent]:
        yield (_with(message, position=MAX_POSITION) if isinstance(message, Attached) else message), payload


class Undecided(Lie):
    """It leaves, and stays, and leaves, and sends nothing meanwhile."""

    takes_rows = False

    def sent(self, message: Message, payload: bytes, channel: LyingChannel) -> Iterator[Sent]:
        yield from super().sent(message, payload, channel)
        if isinstance(message, Pong) and self.begun:
            yield Leaving(60.0, called_off=message.id % 2 == 0), b""


class OutOfPlace(Lie):
    """It sends what has no place on a control channel, and nothing else any more."""

    takes_rows = False

    def sent(self, message: Message, payload: bytes, channel: LyingChannel) -> Iterator[Sent]:
        yield from super().sent(message, payload, channel)
        if isinstance(message, Pong) and self.begun:
            yield Close(), b""


LIES: dict[str, Callable[[], Lie]] = {
    "rows of NaN": NotANumber,
    "rows of infinity": Infinite,
    "rows left out": Elided,
    "rows called not needed": NotNeeded,
    "a payload too short": Short,
    "a payload too long": Long,
    "a wrong count": Miscounted,
    "rows never asked for": Unasked,
    "rows of a later epoch": LaterEpoch,
    "a start in a later epoch": LaterStart,
    "a trace without room": Travelled,
    "mute": Mute,
    "mute, counting steps": MuteAndBusy,
    "duplicates without end": Duplicates,
    "deaf": Deaf,
    "deaf, counting steps": DeafAndBusy,
    "idle": Idle,
    "idle, counting steps": Busy,
    "idle, in a step that takes a day": Slow,
    "having rows and not": Wavering,
    "taking row after row": Sipping,
    "computing from the beginning again": Recomputing,
    "ahead of the stream": Ahead,
    "in a later epoch": Elsewhere,
    "without a word of what it has": Wordless,
    "an opening without an answer": Unopened,
    "orders without an answer": Disobedient,
    "a forged acceptance": Forged,
    "fenced": Fenced,
    "a link refused": Refusing,
    "a control channel that breaks": Flapping,
    "a row computed at each new connection": Excused,
    "without its rows at each new connection": Forgetful,
    "with all rows at each new connection": FarAhead,
    "leaving and staying": Undecided,
    "a message out of place": OutOfPlace,
}


NOT_ALONE = ("rows called not needed", "a trace without room", "a forged acceptance")
"""Lies that are none towards a client."""

NOT_FIRST = ("rows left out", "a forged acceptance")
"""Lies that are none where the client feeds a hop that feeds another."""

LAST = (
    "a forged acceptance",
    "a link refused",
    "deaf",
    "mute",
    "rows of NaN",
    "rows left out",
    "in a later epoch",
    "with all rows at each new connection",
)
"""Lies towards the hop before."""

HOP_MODES: dict[str, tuple[str, str]] = {
    **{f"{name} (alone)": (name, "alone") for name in LIES if name not in NOT_ALONE},
    **{f"{name} (first)": (name, "first") for name in LIES if name not in NOT_FIRST},
    **{f"{name} (last)": (name, "last") for name in LAST},
}
"""Every lie in every place of a route where it is one: the only hop, the first of two, the last of two."""


# How a real server is made to lie


class LyingSink:
    """Lets a server see what its lie lets through."""

    def __init__(self, inner: ChannelSink, lie: Lie) -> None:
        self._inner = inner
        self._lie = lie
        self._frames = FrameDecoder(MAX_PAYLOAD_BYTES)

    def data_received(self, data: bytes) -> None:
        """ChannelSink."""
        self._frames.feed(data)
        while (frame := self._frames.next()) is not None:
            if self._lie.received(ANY.decode(frame[0])):
                self._inner.data_received(bytes(encode_frame(*frame)))

    def connection_lost(self, error: Exception | None) -> None:
        """ChannelSink."""
        self._inner.connection_lost(error)


class LyingChannel(ForwardingChannel):
    """Sends what its lie makes of each frame."""

    def __init__(self, inner: Channel, lie: Lie) -> None:
        super().__init__(inner)
        self._lie = lie
        self._frames = FrameDecoder(MAX_PAYLOAD_BYTES)
        self._flood: asyncio.Task[None] | None = None

    def attach(self, sink: ChannelSink) -> None:
        """Channel."""
        self._inner.attach(LyingSink(sink, self._lie))

    def write(self, data: bytes | bytearray) -> None:
        """Channel."""
        self._frames.feed(bytes(data))
        while (frame := self._frames.next()) is not None:
            for message, payload in self._lie.sent(ANY.decode(frame[0]), frame[1], self):
                self._inner.write(encode_frame(encode_message(message), payload))

    def send_now(self, message: Message, payload: bytes) -> None:
        """Send this at once, as it is."""
        with contextlib.suppress(ChannelClosed):
            self._inner.write(encode_frame(encode_message(message), payload))

    def flood(self, message: Message, payload: bytes) -> None:
        """Send this again and again, as fast as it is taken."""
        if self._flood is None:
            self._flood = asyncio.ensure_future(
                self._keep_sending(bytes(encode_frame(encode_message(message), payload)))
            )

    async def _keep_sending(self, frame: bytes) -> None:
        with contextlib.suppress(ChannelClosed):
            while True:
                self._inner.write(frame)
                await self._inner.drain()
                await asyncio.sleep(0)


class LyingTransport(ForwardingTransport):
    """A transport whose channels lie."""

    def __init__(self, inner: Transport, lie: Lie) -> None:
        super().__init__(inner)
        self._lie = lie

    async def listen(self, handler: ChannelHandler) -> None:
        """Transport."""
        await self._inner.listen(lambda channel: handler(LyingChannel(channel, self._lie)))

    async def dial(self, peer: PeerId, address: str) -> Channel:
        """Transport."""
        return LyingChannel(await self._inner.dial(peer, address), self._lie)


def lying(lie: Lie) -> Callable[[Transport, PeerId], Transport]:
    """What makes a server lie: `Server(options, wrap=lying(Mute()))`."""
    return lambda inner, me: LyingTransport(inner, lie)
