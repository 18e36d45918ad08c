"""Which handler serves a channel that begins with which question."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from shoal.protocol.messages import Message, Question
from shoal.transport.frame_channel import FrameChannel
from shoal.types import PeerId

A = TypeVar("A", bound=Message)
Q = TypeVar("Q", bound=Message)


class Answers:
    """Handlers by question. Each question has one."""

    def __init__(self) -> None:
        self._handlers: dict[type[Message], Callable[[FrameChannel, Any, bytes], Awaitable[None]]] = {}

    @property
    def requests(self) -> frozenset[type[Message]]:
        """The first messages that have a handler."""
        return frozenset(self._handlers)

    def serve(self, question: Question[Q, A], handler: Callable[[FrameChannel, Q, bytes], Awaitable[None]]) -> None:
        """The handler has the channel from the request and its payload on, and sends the answer itself."""
        self._handlers[question.request] = handler

    def answer(self, question: Question[Q, A], handler: Callable[[Q, PeerId], tuple[A, bytes]]) -> None:
        """The handler makes the answer and its payload, or raises a ShoalError to refuse; the channel then ends."""

        async def served(frames: FrameChannel, request: Q, _: bytes) -> None:
            message, payload = handler(request, frames.peer)
            await frames.send(message, payload)

        self._handlers[question.request] = served

    async def begin(self, frames: FrameChannel, request: Message, payload: bytes) -> None:
        """Serve a channel that began with this request; raises ShoalError for what is refused."""
        await self._handlers[type(request)](frames, request, payload)
