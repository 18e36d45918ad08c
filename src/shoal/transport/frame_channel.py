"""Messages over a channel."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import TypeVar

from shoal import errors
from shoal.clock import SYSTEM_CLOCK
from shoal.protocol.frames import MAX_HEADER_BYTES, FrameDecoder, encode_frame
from shoal.protocol.messages import MAX_CONFIG_BYTES, Message, Question, Refusal, Vocabulary, encode_message, only, tag
from shoal.protocol.refusals import refused
from shoal.transport.address import source_network
from shoal.transport.channel import Channel
from shoal.transport.inbox import PAUSE_BYTES
from shoal.transport.token_bucket import TokenBucket
from shoal.types import PeerId

A = TypeVar("A", bound=Message)
M = TypeVar("M", bound=Message)
Q = TypeVar("Q", bound=Message)

STRANGER_PAYLOAD_BYTES = MAX_CONFIG_BYTES
"""The largest payload before a channel is known to be a link of a session."""


IDLE_WORDS_PER_S, IDLE_WORDS = 1000.0, 1000.0
"""Messages without anything new that one channel may bring: so many a second, and so many at once. Honest ones bring a few."""


def _nothing() -> None:
    """For payloads that nobody counts."""


class FrameChannel:
    """The sink of a channel that carries messages: `deliver_to` pushes them on, `receive` waits for one.

    One task may send and one receive at a time. `idle_words` are the messages without anything new that are listened to:
    the channel is not read while there are none left.
    """

    def __init__(
        self,
        channel: Channel,
        max_payload_bytes: int = STRANGER_PAYLOAD_BYTES,
        max_header_bytes: int = MAX_HEADER_BYTES,
        idle_words: TokenBucket | None = None,
    ) -> None:
        self._channel = channel
        self.idle_words = idle_words or TokenBucket(IDLE_WORDS_PER_S, IDLE_WORDS, SYSTEM_CLOCK)
        self._held: asyncio.TimerHandle | None = None  # until idle words are listened to again
        self._decoder = FrameDecoder(max_payload_bytes, max_header_bytes)
        self._handler: Callable[[bytes, bytes], None] | None = None  # of `deliver_to`, with headers
        self._delivering = False  # the handler is being called
        self._paused = False
        self._ignored = False
        self._end: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None  # of the task in `receive` or `deliver_to`
        channel.attach(self)

    @property
    def peer(self) -> PeerId:
        """The node at the other end."""
        return self._channel.peer

    @property
    def source(self) -> str:
        """What counts as one stranger: the network of the node at the other end, or its id where no address is known."""
        return self.network or self.peer

    @property
    def network(self) -> str:
        """The network of the node at the other end: an IPv4 address or an IPv6 /64; empty where no address is known."""
        return source_network(self._channel.host)

    @property
    def transport(self) -> str:
        """The transport's name."""
        return self._channel.transport

    def allow_payload(self, max_payload_bytes: int) -> None:
        """Change the largest payload accepted from here on."""
        self._decoder.allow_payload(max_payload_bytes)

    def allow_link(self, max_payload_bytes: int) -> None:
        """The channel is a link from here on: rows of at most so many bytes, with traces."""
        self._decoder.allow_payload(max_payload_bytes)
        self._decoder.allow_header(MAX_HEADER_BYTES)

    def ignore(self) -> None:
        """What has come and what still comes is of no interest: it is dropped."""
        self._ignored = True
        self._decoder.take_rest()
        if self._paused:
            self.resume_reading()

    def data_received(self, data: bytes) -> None:
        """ChannelSink: messages for the handler, if there is one."""
        if self._ignored:
            return
        self._decoder.feed(data)
        if self._handler is not None:
            self._deliver()
        elif self._waiter is not None:
            self._wake()
        elif self._decoder.pending_bytes >= PAUSE_BYTES and not self._paused:
            self.pause_reading()

    def connection_lost(self, error: Exception | None) -> None:
        """ChannelSink: the end comes after the messages that arrived."""
        self._end = error or errors.ChannelClosed(f"peer {self.peer[:8]} closed the connection")
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    @property
    def writable(self) -> bool:
        """Whether the channel is open and its send buffer has room."""
        return self._channel.writable

    def send_nowait(self, message: Message, payload: bytes | bytearray | memoryview = b"") -> None:
        """Send one message whether the send buffer has room or not. Raises ChannelClosed."""
        self._channel.write(encode_frame(encode_message(message), payload))

    async def send(self, message: Message, payload: bytes | bytearray | memoryview = b"") -> None:
        """Send one message, then wait until the send buffer has room. Raises ChannelClosed."""
        self.send_nowait(message, payload)
        await self._channel.drain()

    async def drain(self) -> None:
        """Wait until the send buffer has room. Raises ChannelClosed."""
        await self._channel.drain()

    async def receive(self, vocabulary: Vocabulary[M], is_large: Callable[[], None] = _nothing) -> tuple[M, bytes]:
        """The next message, which must be one of those that may come now, and its payload.

        `is_large` is called, maybe repeatedly, while a large payload comes that may follow its header.
        Raises ChannelClosed at the end, CorruptFrame for a wrong hash, ProtocolError for a broken specification, and what
        the vocabulary raises.
        """

        def follows(header: bytes) -> int:
            allowed = vocabulary.max_payload_bytes(header)
            if allowed:
                is_large()
            return allowed

        while (frame := self._decoder.next(follows)) is None:
            if self._end is not None:
                raise self._end
            if self._paused:
                self.resume_reading()
            await self._wait()
        return _decoded(vocabulary, *frame)

    async def deliver_to(self, vocabulary: Vocabulary[M], handler: Callable[[M, bytes], None]) -> None:
        """Give every message to `handler`, in the call in which it arrives, until the channel ends.

        A payload is bounded by what `allow_payload` said and, in the end, by its message.

        Raises what `receive` raises, or the first error of the handler; the channel is still open then.
        """

        def decoded(header: bytes, payload: bytes) -> None:
            handler(*_decoded(vocabulary, header, payload))

        self._handler = decoded
        try:
            if self._paused:
                self.resume_reading()
            self._deliver()
            while self._end is None:
                await self._wait()
        finally:
            self._handler = None
        raise self._end

    def _deliver(self) -> None:
        if self._delivering:
            return  # the handler has caused this: what has come is delivered when it returns
        self._delivering = True
        try:
            while (
                (handler := self._handler) is not None
                and not self._paused
                and self._held is None
                and (frame := self._decoder.next()) is not None
            ):
                handler(*frame)
        except Exception as error:  # the task in `deliver_to` raises it
            self._handler, self._end = None, error
            self._wake()
        finally:
            self._delivering = False

    def pause_reading(self) -> None:
        """Deliver nothing more for now."""
        self._paused = True
        self._channel.pause_reading()

    def resume_reading(self) -> None:
        """Deliver again, from a later turn of the event loop on."""
        self._paused = False
        if self._held is None:
            self._read_on()

    def _read_on(self) -> None:
        self._channel.resume_reading()
        if self._handler is not None and self._decoder.pending_bytes:
            asyncio.get_running_loop().call_soon(self._deliver)

    def was_idle(self) -> None:
        """The message that was delivered last brought nothing new: after too many the next ones are held back for a while."""
        wait_s = self.idle_words.owe()
        if wait_s > 0 and self._held is None:
            self._held = asyncio.get_running_loop().call_later(wait_s, self._let_go)
            self._channel.pause_reading()

    def _let_go(self) -> None:
        self._held = None
        if not self._paused:
            self._read_on()

    def _stop_holding(self) -> None:
        if self._held is not None:
            self._held.cancel()
            self._held = None

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

    def release(self) -> Channel:
        """Leave the channel to another sink, with what has arrived beyond the last message."""
        self._stop_holding()
        self._channel.detach(self._decoder.take_rest())
        return self._channel

    async def close(self) -> None:
        """Flush and end. Closing twice is harmless."""
        await self._channel.close()

    def abort(self) -> None:
        """Drop the channel at once; nothing more is delivered."""
        self._handler = None
        self._stop_holding()
        self._channel.abort()
        if self._end is None:
            self.connection_lost(errors.ChannelClosed("the channel was dropped"))

    async def __aenter__(self) -> FrameChannel:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            await self.close()
        else:
            self.abort()


def _decoded(vocabulary: Vocabulary[M], header: bytes, payload: bytes) -> tuple[M, bytes]:
    """A frame as a message; raises ProtocolError for a payload that its message does not carry."""
    message = vocabulary.decode(header)
    if len(payload) > message.max_payload_bytes:
        raise errors.ProtocolError(f"a {tag(type(message))} message came with {len(payload)} bytes")
    return message, payload
