"""A conversation in one session."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from types import TracebackType
from typing import Any

from shoal.client.activity import reply_waits
from shoal.client.completion import AsyncCompletionStream, Completion, GrowingReply
from shoal.client.decoder import SessionDecoder
from shoal.client.prompt import said_text
from shoal.client.remote_model import RemoteModel
from shoal.client.session.session import Session
from shoal.errors import UsageError
from shoal.model.nn.sampling_params import SamplingParams
from shoal.model.weights.chat_template import Message


class AsyncChatSession:
    """Made by `AsyncModel.chat`. A turn costs its new tokens only, and enters `messages` when it has succeeded.

    One turn at a time: a second `say` waits for the first, and a stream that was left open ends when the next turn begins.
    """

    def __init__(self, model: RemoteModel, session: Session, messages: tuple[Message, ...] = ()) -> None:
        self._model = model
        self._session = session
        self._decoder = SessionDecoder(model, session)
        self._messages = messages
        self._opened: set[AsyncCompletionStream] = set()
        self._saying = asyncio.Lock()
        self._closed = False

    @property
    def messages(self) -> tuple[Message, ...]:
        """What was said, by whom."""
        return self._messages

    @property
    def closed(self) -> bool:
        """Whether it has ended."""
        return self._closed

    async def begin(self, messages: Sequence[Message] = ()) -> None:
        """Go on from other messages, such as those of an earlier conversation; what they share is not computed again."""
        begun = first_messages(None, messages)
        for stream in list(self._opened):
            await stream.aclose()
        self._messages = begun

    async def say(self, text: str, **sampling: Any) -> Completion:
        """Say something and get the whole answer; raises what a session raises, and UsageError where the template refuses."""
        async with self._saying:
            return await self.stream(text, **sampling).finish()

    def stream(self, text: str, **sampling: Any) -> AsyncCompletionStream:
        """Say something and stream the answer. One that is left early never was said."""
        if self._closed:
            raise UsageError("the conversation is closed")
        asked: tuple[Message, ...] = (*self._messages, {"role": "user", "content": said_text(text)})
        reply = GrowingReply(None, SamplingParams.of(sampling))
        return AsyncCompletionStream(reply, self._turn(reply, asked), self._opened)

    async def _turn(self, reply: GrowingReply, asked: tuple[Message, ...]) -> AsyncGenerator[str, None]:
        for other in [one for one in self._opened if one.reply is not reply]:
            await other.aclose()
        if asked[:-1] != self._messages:
            raise UsageError("the conversation has gone on since this turn was asked for")
        reply.ask(await self._model.encode_chat(asked))
        try:
            with self._model.client.activity.doing(partial(reply_waits, reply)):
                async with aclosing(self._decoder.generate(reply)) as pieces:
                    async for piece in pieces:
                        yield piece
        finally:
            if reply.finish_reason:
                self._messages = (*asked, {"role": "assistant", "content": reply.text})

    def __repr__(self) -> str:
        state = ", closed" if self._closed else ""
        return f"<{type(self).__name__} {self._model.spec.name!r} {len(self._messages)} messages{state}>"

    async def aclose(self) -> None:
        """End the session, and an answer that is being streamed. Closing twice is harmless."""
        self._closed = True
        for stream in list(self._opened):
            await stream.aclose()
        await self._session.close()

    async def __aenter__(self) -> AsyncChatSession:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


def first_messages(system: str | None, messages: Sequence[Message]) -> tuple[Message, ...]:
    """What a conversation begins with; raises UsageError for both, and for what are no messages."""
    if system and messages:
        raise UsageError("system or messages is given, not both: the first message may be the system's")
    if system:
        return ({"role": "system", "content": said_text(system)},)
    begun: list[Message] = []
    for one in messages:
        if not isinstance(one, Mapping) or not {"role", "content"} <= set(one):
            raise UsageError('messages are dictionaries like {"role": "user", "content": "Hello"}')
        begun.append({"role": said_text(one["role"]), "content": said_text(one["content"])})
    return tuple(begun)
