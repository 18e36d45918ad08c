"""One end of a channel whose other end is the test."""

from __future__ import annotations

import asyncio

from shoal.errors import ChannelClosed
from shoal.protocol.frames import encode_frame
from shoal.protocol.messages import Message, encode_message
from shoal.transport.channel import ChannelSink
from shoal.transport.inbox import Inbox
from shoal.types import PeerId


class Pipe:
    """`sent` went out, `arrive` lets a whole frame come in; `room` says whether the send buffer has room."""

    host = ""
    transport = "memory"
    peer = PeerId("00" * 32)

    def __init__(self) -> None:
        self.inbox = Inbox(lambda: self.asked.append("pause"), lambda: self.asked.append("resume"))
        self.asked: list[str] = []
        self.sent: list[bytes] = []
        self.room = asyncio.Event()
        self.room.set()
        self.ended = False

    def arrive(self, message: Message, payload: bytes = b"") -> None:
        """A whole frame comes in."""
        self.inbox.put(bytes(encode_frame(encode_message(message), payload)))

    @property
    def writable(self) -> bool:
        """Channel."""
        return self.room.is_set() and not self.ended

    def attach(self, sink: ChannelSink) -> None:
        """Channel."""
        self.inbox.attach(sink)

    def detach(self, unused: bytes) -> None:
        """Channel."""
        self.inbox.detach(unused)

    def pause_reading(self) -> None:
        """Channel."""
        self.inbox.pause()

    def resume_reading(self) -> None:
        """Channel."""
        self.inbox.resume()

    def write(self, data: bytes | bytearray) -> None:
        """Channel: into `sent`."""
        if self.ended:
            raise ChannelClosed("closed")
        self.sent.append(bytes(data))

    async def drain(self) -> None:
        """Channel: wait for `room`."""
        await self.room.wait()
        if self.ended:
            raise ChannelClosed("closed")

    async def close(self) -> None:
        """Channel."""
        self.abort()

    def abort(self) -> None:
        """Channel."""
        self.ended = True
        self.room.set()
        self.inbox.drop(ChannelClosed("dropped"))


async def turns() -> None:
    """Let every task that can run do so."""
    for _ in range(10):
        await asyncio.sleep(0)
