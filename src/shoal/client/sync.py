"""The blocking face: the same model, from code without an event loop, or beside one.

Every method runs its asynchronous twin on a loop in a thread of its own.
"""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from shoal.client.async_model import CONTEXT_TOKENS, AsyncModel, connect_async
from shoal.client.chat_session import AsyncChatSession
from shoal.client.client_options import ROUTE_WAIT_S, SessionOptions
from shoal.client.completion import AsyncCompletionStream, Completion, CompletionFields
from shoal.client.loop_thread import CLOSE_S, REACTS_S, LoopThread
from shoal.client.remote_model import RemoteModel
from shoal.client.saved_reply import SavedReply
from shoal.errors import ShoalError
from shoal.model.weights.chat_template import Message

EXIT_S = 1.0
"""How long a program's end waits for a model that was not closed."""


class Model:
    """A model of a swarm, made by `connect`; see `AsyncModel`. Close it, or use `with`. Several threads may use it at once."""

    def __init__(self, loop: LoopThread, model: AsyncModel) -> None:
        self._loop = loop
        self._model = model
        self._at_exit = weakref.finalize(self, _close, loop, model, EXIT_S)

    @property
    def remote(self) -> RemoteModel:
        """Its embedding, head and tokenizer."""
        return self._model.remote

    def generate(self, prompt: str | Sequence[int], **options: Any) -> Completion:
        """See `AsyncModel.generate`. No token waits until this thread has seen the one before."""
        return self._loop.run(self._model.generate(prompt, **options))

    def stream(self, prompt: str | Sequence[int], **options: Any) -> CompletionStream:
        """See `AsyncModel.stream`."""
        return CompletionStream(self, self._loop, self._model.stream(prompt, **options))

    def resume(
        self,
        saved: SavedReply | str | os.PathLike[str],
        save: str | os.PathLike[str] | None = None,
        *,
        wait_s: float = ROUTE_WAIT_S,
    ) -> CompletionStream:
        """See `AsyncModel.resume`."""
        return CompletionStream(self, self._loop, self._model.resume(saved, save, wait_s=wait_s))

    def chat(
        self,
        system: str | None = None,
        *,
        messages: Sequence[Message] = (),
        max_tokens: int = CONTEXT_TOKENS,
        wait_s: float = ROUTE_WAIT_S,
        options: SessionOptions | None = None,
        **session: Any,
    ) -> ChatSession:
        """See `AsyncModel.chat`."""
        talk = self._model.chat(
            system, messages=messages, max_tokens=max_tokens, wait_s=wait_s, options=options, **session
        )
        return ChatSession(self, self._loop, self._loop.run(talk))

    def __repr__(self) -> str:
        return repr(self._model).replace("AsyncModel", "Model", 1)

    def close(self) -> None:
        """See `AsyncModel.aclose`."""
        if self._at_exit.detach() is not None:
            _close(self._loop, self._model, CLOSE_S)

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, KeyboardInterrupt) and self._at_exit.detach() is not None:
            _close(self._loop, self._model, REACTS_S)
        self.close()


class CompletionStream(CompletionFields):
    """A reply's text, piece by piece; see `AsyncCompletionStream`."""

    def __init__(self, model: Model, loop: LoopThread, stream: AsyncCompletionStream) -> None:
        super().__init__(stream.reply)
        self._model = model  # which stays open as long as this is read
        self._loop = loop
        self._stream = stream

    def __iter__(self) -> CompletionStream:
        return self

    def __next__(self) -> str:
        piece = self._loop.run(self._stream.next_piece())
        if piece is None:
            raise StopIteration
        return piece

    def finish(self) -> Completion:
        """See `AsyncCompletionStream.finish`."""
        return self._loop.run(self._stream.finish())

    def close(self) -> None:
        """See `AsyncCompletionStream.aclose`. A model that is closed has closed its streams."""
        with contextlib.suppress(ShoalError):
            self._loop.run(self._stream.aclose())

    def __enter__(self) -> CompletionStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class ChatSession:
    """A conversation that keeps its session, made by `Model.chat`; see `AsyncChatSession`."""

    def __init__(self, model: Model, loop: LoopThread, session: AsyncChatSession) -> None:
        self._model = model
        self._loop = loop
        self._session = session

    @property
    def messages(self) -> tuple[Message, ...]:
        """What was said, by whom."""
        return self._session.messages

    def begin(self, messages: Sequence[Message] = ()) -> None:
        """See `AsyncChatSession.begin`."""
        self._loop.run(self._session.begin(messages))

    def say(self, text: str, **sampling: Any) -> Completion:
        """See `AsyncChatSession.say`."""
        return self._loop.run(self._session.say(text, **sampling))

    def stream(self, text: str, **sampling: Any) -> CompletionStream:
        """See `AsyncChatSession.stream`."""
        return CompletionStream(self._model, self._loop, self._session.stream(text, **sampling))

    def __repr__(self) -> str:
        return repr(self._session).replace("AsyncChatSession", "ChatSession", 1)

    def close(self) -> None:
        """See `AsyncChatSession.aclose`. A model that is closed has closed its conversations."""
        with contextlib.suppress(ShoalError):
            self._loop.run(self._session.aclose())

    def __enter__(self) -> ChatSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def connect(model: str | os.PathLike[str] | None = None, **options: Any) -> Model:
    """See `connect_async`, whose options these are."""
    loop = LoopThread()
    try:
        return Model(loop, loop.run(connect_async(model, **options)))
    except BaseException:
        loop.close(REACTS_S)
        raise


def _close(loop: LoopThread, model: AsyncModel, within_s: float) -> None:
    """Close a model and its loop, in a bounded time; what cannot be told to servers then, they find out."""
    with contextlib.suppress(ShoalError, TimeoutError):
        loop.run(model.aclose(), within_s)
    loop.close(within_s)
