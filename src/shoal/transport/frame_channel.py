"""Messages over a channel."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import TypeVar

from shoal import errors
from shoal.protocol.frames import MAX_HEADER_BYTES, MAX_PAYLOAD_BYTES, FrameDecoder, encode_frame
from shoal.protocol.messages import MAX_CONFIG_BYTES, Message, Question, Refusal, Vocabulary, encode_message, only
from shoal.protocol.refusals import refused
from shoal.transport.channel import Channel, PromptChannel
from shoal.types import PeerId

A = TypeVar("A", bound=Message)
M = TypeVar("M", bound=Message)
Q = TypeVar("Q", bound=Message)

STRANGER_PAYLOAD_BYTES = MAX_CONFIG_BYTES
"""The largest payload before a channel is known to be a link of a session."""


class FrameChannel:
    """A channel that carries messages. One task may send and one receive at a time."""

    def __init__(
        self,
        channel: Channel,
        max_payload_bytes: int = STRANGER_PAYLOAD_BYTES,
        max_header_bytes: int = MAX_HEADER_BYTES,
    ) -> None:
        self._channel = channel
        self._prompt = channel if isinstance(channel, PromptChannel) else None
        self._decoder = FrameDecoder(max_payload_bytes, max_header_bytes)

    @property
    def peer(self) -> PeerId:
        """The node at the other end."""
        return self._channel.peer

    @property
    def transport(self) -> str:
        """The transport's name."""
        return self._channel.transport

    def allow_payload(self, max_payload_bytes: int) -> None:
        """Change the largest payload accepted from here on."""
        self._decoder.max_payload_bytes = min(max_payload_bytes, MAX_PAYLOAD_BYTES)

    async def send(self, message: Message, payload: bytes | bytearray | memoryview = b"") -> None:
        """Send one message; waits under back-pressure. Raises ChannelClosed."""
        await self._channel.send(encode_frame(encode_message(message), payload))

    @property
    def sends_now(self) -> bool:
        """Whether `send_now` may be called now."""
        return self._prompt is not None and self._prompt.sends_now

    def send_now(self, message: Message, payload: bytes | bytearray | memoryview = b"") -> None:
        """As `send`, without waiting. Nobody may be in `send` meanwhile."""
        assert self._prompt is not None
        self._prompt.send_now(encode_frame(encode_message(message), payload))

    def tap(self, vocabulary: Vocabulary[M], handler: Callable[[M, bytes], bool] | None) -> None:
        """Show messages to `handler` when they arrive, where the channel can; those that it leaves (False) are for `receive`.

        It sees none while older ones wait for `receive`. What it raises, `receive` raises.
        """

        def tapped(data: bytes) -> bool:
            frame = self._decoder.whole(data)
            return frame is not None and handler is not None and handler(vocabulary.decode(frame[0]), frame[1])

        if self._prompt is not None:
            self._prompt.tap(tapped if handler is not None else None)

    async def receive(self, vocabulary: Vocabulary[M]) -> tuple[M, bytes]:
        """The next message, which must be one of those that may come now, and its payload.

        Raises ChannelClosed at the end, CorruptFrame for a wrong hash, ProtocolError for a broken specification, and what
        the vocabulary raises.
        """
        while (frame := self._decoder.next()) is None:
            data = await self._channel.receive()
            if not data:
                raise errors.ChannelClosed(f"peer {self.peer[:8]} closed the connection")
            self._decoder.feed(data)
        return vocabulary.decode(frame[0]), frame[1]

    async def expect(self, kind: type[M]) -> tuple[M, bytes]:
        """The next message, which must be a `kind`, and its payload.

        Raises the error that a refusal stands for, ProtocolError for any other message, and what `receive` raises.
        """
        message, payload = await self.receive(only(kind))
        if isinstance(message, Refusal):
            raise refused(message, self.peer)
        return message, payload

    async def ask(self, question: Question[Q, A], request: Q, payload: bytes = b"") -> tuple[A, bytes]:
        """Begin a channel with a question: its answer and the answer's payload.

        Raises UnknownQuestion when the peer's version does not know it, and what `send` and `expect` raise.
        """
        await self.send(request, payload)
        return await self.expect(question.answer)

    def take_rest(self) -> bytes:
        """What has arrived beyond the last message, for another reader of the same channel."""
        return self._decoder.take_rest()

    async def close(self) -> None:
        """Flush and end. Closing twice is harmless."""
        await self._channel.close()

    def abort(self) -> None:
        """Drop the channel at once."""
        self._channel.abort()

    async def __aenter__(self) -> FrameChannel:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            await self.close()
        else:
            self.abort()
