"""Messages over a channel, and refusals as errors."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import TypeVar

from shoal import errors
from shoal.protocol.frames import MAX_HEADER_BYTES, MAX_PAYLOAD_BYTES, FrameDecoder, encode_frame
from shoal.protocol.messages import (
    MAX_CONFIG_BYTES,
    MAX_TEXT_CHARS,
    AnyMessage,
    Code,
    Message,
    Refusal,
    decode_message,
    encode_message,
)
from shoal.transport.channel import Channel, PromptChannel
from shoal.types import PeerId

M = TypeVar("M", bound=Message)

STRANGER_PAYLOAD_BYTES = MAX_CONFIG_BYTES
"""The largest payload before a channel is known to be a link of a session."""

_BY_ERROR: tuple[tuple[type[errors.ShoalError], Code], ...] = (
    (errors.ProtocolError, "protocol"),
    (errors.SessionFenced, "fenced"),
    (errors.SessionLost, "session"),
    (errors.FingerprintMismatch, "model"),
    (errors.SpanError, "span"),
    (errors.GrantExceeded, "grant"),
    (errors.ServerFull, "full"),
    (errors.RecordError, "record"),
    (errors.IdentityError, "token"),
    (errors.UnsupportedModel, "unsupported"),
    (errors.NotAMember, "member"),
)
_BY_CODE: dict[str, type[errors.ShoalError]] = {
    "protocol": errors.ProtocolError,
    "session": errors.SessionLost,
    "fenced": errors.SessionFenced,
    "model": errors.FingerprintMismatch,
    "span": errors.NotHeld,
    "grant": errors.GrantExceeded,
    "record": errors.RecordError,
    "member": errors.NotAMember,
}


def refusal(error: errors.ShoalError) -> Refusal:
    """The message that tells a peer of an error."""
    code: Code = next((code for kind, code in _BY_ERROR if isinstance(error, kind)), "failed")
    retry_after = error.retry_after if isinstance(error, errors.ServerFull) else 0.0
    return Refusal(code, str(error)[:MAX_TEXT_CHARS], retry_after)


def refused(message: Refusal, peer: PeerId) -> errors.ShoalError:
    """The error that a refusal stands for on the side that receives it."""
    text = f"peer {peer[:8]}: {message.message}"
    if message.code == "full":
        return errors.ServerFull(text, message.retry_after)
    return _BY_CODE.get(message.code, errors.Refused)(text)


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

    async def send(self, message: AnyMessage, payload: bytes | bytearray | memoryview = b"") -> None:
        """Send one message; waits under back-pressure. Raises ChannelClosed."""
        await self._channel.send(encode_frame(encode_message(message), payload))

    @property
    def sends_now(self) -> bool:
        """Whether `send_now` may be called now."""
        return self._prompt is not None and self._prompt.sends_now

    def send_now(self, message: AnyMessage, payload: bytes | bytearray | memoryview = b"") -> None:
        """As `send`, without waiting. Nobody may be in `send` meanwhile."""
        assert self._prompt is not None
        self._prompt.send_now(encode_frame(encode_message(message), payload))

    def tap(self, handler: Callable[[AnyMessage, bytes], bool] | None) -> None:
        """Show messages to `handler` when they arrive, where the channel can; those that it leaves (False) are for `receive`.

        It sees none while older ones wait for `receive`. What it raises, `receive` raises.
        """

        def tapped(data: bytes) -> bool:
            frame = self._decoder.whole(data)
            return frame is not None and handler is not None and handler(decode_message(frame[0]), frame[1])

        if self._prompt is not None:
            self._prompt.tap(tapped if handler is not None else None)

    async def receive(self) -> tuple[AnyMessage, bytes]:
        """The next message and its payload.

        Raises ChannelClosed at the end, CorruptFrame for a wrong hash, ProtocolError for a broken specification.
        """
        while (frame := self._decoder.next()) is None:
            data = await self._channel.receive()
            if not data:
                raise errors.ChannelClosed(f"peer {self.peer[:8]} closed the connection")
            self._decoder.feed(data)
        return decode_message(frame[0]), frame[1]

    async def expect(self, kind: type[M]) -> tuple[M, bytes]:
        """The next message, which must be a `kind`.

        Raises the error that a refusal stands for, ProtocolError for any other message, and what `receive` raises.
        """
        message, payload = await self.receive()
        if isinstance(message, kind):
            return message, payload
        if isinstance(message, Refusal):
            raise refused(message, self.peer)
        raise errors.ProtocolError(f"peer {self.peer[:8]} sent {type(message).__name__}, not {kind.__name__}")

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
