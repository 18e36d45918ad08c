"""A model in asyncio code: text in, replies out."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from shoal.client.activity import reply_waits
from shoal.client.chat_session import AsyncChatSession, first_messages
from shoal.client.client import AsyncClient
from shoal.client.client_options import ROUTE_WAIT_S, SessionOptions, connect_options, reply_options, session_options
from shoal.client.completion import AsyncCompletionStream, Completion, GrowingReply
from shoal.client.decoder import SessionDecoder
from shoal.client.prompt import kind_of, prompt_tokens
from shoal.client.remote_model import RemoteModel, open_model
from shoal.client.reply_file import ReplyFile
from shoal.client.saved_reply import SavedReply, place_for_reply, read_saved, take_up
from shoal.client.session.session import Session
from shoal.errors import FingerprintMismatch, UsageError
from shoal.model.weights.chat_template import Message
from shoal.model.weights.model_source import check_there
from shoal.options import check_text, split
from shoal.swarm.routing.route_options import RouteOptions

CONTEXT_TOKENS = 4096
"""How many tokens a conversation may have by default."""

DEFAULTS = SessionOptions()

Opening = Callable[[], Awaitable[tuple[Session, list[int]]]]
"""Opens a reply's session; also the tokens whose rows it holds already."""


class AsyncModel:
    """A model of a swarm, made by `connect_async`. Close it, or use `async with`: that ends what is still open."""

    def __init__(self, remote: RemoteModel, options: SessionOptions = DEFAULTS) -> None:
        self.remote = remote
        self._options = options
        self._streams: set[AsyncCompletionStream] = set()
        self._chats: list[AsyncChatSession] = []
        self._closed = False

    async def generate(self, prompt: str | Sequence[int], **options: Any) -> Completion:
        """The whole reply; raises what `stream` and reading it raise."""
        return await self.stream(prompt, **options).finish()

    def stream(self, prompt: str | Sequence[int], **options: Any) -> AsyncCompletionStream:
        """Stream the continuation of a text or of token ids, or (`raw=False`) the answer to a text.

        The keywords are the fields of `ReplyOptions`, `SamplingParams`, `SessionOptions` and `RouteOptions`. Raises
        UsageError for a prompt or an option that makes no sense. Reading raises what a session raises, UsageError where the
        chat template refuses the prompt, and SessionFenced when another process goes on with a saved reply.
        """
        self._check_open()
        asked, params, session = reply_options(options, self._options)
        place = None if asked.save is None else place_for_reply(asked.save)
        ids = prompt_tokens(self.remote.tokenizer, prompt, asked.raw, self.remote.config.vocab_size)
        reply = GrowingReply(ids, params)

        async def opening() -> tuple[Session, list[int]]:
            if not reply.prompt_ids:
                reply.ask(await self.remote.encode_chat([{"role": "user", "content": str(prompt)}]))
            room = self._with_room(session, len(reply.prompt_ids) + params.max_tokens)
            if place is not None:
                room = msgspec.structs.replace(room, keep_s=asked.keep_s)
            return await self.remote.client.open_session(self.remote.spec, room, asked.wait_s), []

        return self._stream(reply, place, opening)

    def resume(
        self,
        saved: SavedReply | str | os.PathLike[str],
        save: str | os.PathLike[str] | None = None,
        *,
        wait_s: float = ROUTE_WAIT_S,
    ) -> AsyncCompletionStream:
        """Go on with a reply that `read_saved` has read, or with that in a file, which is kept up to date then.

        Its text so far comes first.
        Servers that still hold its session go on from there, the others get its rows again; the process that wrote the file is
        fenced off. Without `save` nothing keeps another process from taking the same reply up. Reading raises
        FingerprintMismatch for another model's reply, SessionFenced when another process has it, and what a session raises.
        """
        self._check_open()
        if not isinstance(saved, SavedReply):
            file, saved = saved, read_saved(saved)
            save = save or file
        path = None if save is None else place_for_reply(save)
        reply = GrowingReply(saved.prompt_ids, saved.params, saved.token_ids, saved.seed, saved.finish_reason)
        if saved.finish_reason:
            return AsyncCompletionStream(reply, self._finished(saved, reply), self._streams)

        async def opening() -> tuple[Session, list[int]]:
            self._check_same_model(saved)
            # The file first: if this process ends too, the next one must not come as it did.
            mine = saved.taken_up() if path is None else take_up(path, saved)
            rows = await self.remote.embed(mine.fed_ids)
            return await self.remote.client.resume(mine.session, rows, wait_s), mine.fed_ids

        return self._stream(reply, path, opening)

    async def chat(
        self,
        system: str | None = None,
        *,
        messages: Sequence[Message] = (),
        max_tokens: int = CONTEXT_TOKENS,
        wait_s: float = ROUTE_WAIT_S,
        options: SessionOptions | None = None,
        **session: Any,
    ) -> AsyncChatSession:
        """A conversation of up to `max_tokens` tokens in one session; raises what opening a session raises.

        It begins with what `system` tells the model, or with `messages`, such as those of an earlier conversation.

        The other keywords are the fields of `SessionOptions` and `RouteOptions`.
        """
        self._check_open()
        begun = first_messages(system, messages)
        asked = session_options(options or self._options, *split(session, SessionOptions, RouteOptions))
        opened = await self.remote.client.open_session(self.remote.spec, self._with_room(asked, max_tokens), wait_s)
        talk = AsyncChatSession(self.remote, opened, begun)
        self._chats = [*(other for other in self._chats if not other.closed), talk]
        return talk

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError("the model is closed")

    def _check_same_model(self, saved: SavedReply) -> None:
        theirs, ours = saved.session.model, self.remote.spec
        if theirs.checkpoint != ours.checkpoint:
            raise FingerprintMismatch(f"the reply is of {theirs.name}, this is {ours.name}")

    def _with_room(self, asked: SessionOptions, num_tokens: int) -> SessionOptions:
        return msgspec.structs.replace(asked, max_tokens=self.remote.session_options(num_tokens).max_tokens)

    def _stream(self, reply: GrowingReply, path: Path | None, opening: Opening) -> AsyncCompletionStream:
        return AsyncCompletionStream(reply, self._made(reply, path, opening), self._streams)

    async def _made(self, reply: GrowingReply, path: Path | None, opening: Opening) -> AsyncGenerator[str, None]:
        """A reply in a session of its own. Left early, one that is kept in a file leaves its session with the servers."""
        self._check_open()
        session, held = await opening()
        decoder = SessionDecoder(self.remote, session, held, ReplyFile(path, self.remote, reply).keep)
        try:
            with self.remote.client.activity.doing(partial(reply_waits, reply)):
                async with aclosing(decoder.generate(reply)) as pieces:
                    async for piece in pieces:
                        yield piece
        finally:
            await session.close(end=path is None or bool(reply.finish_reason))

    async def _finished(self, saved: SavedReply, reply: GrowingReply) -> AsyncGenerator[str, None]:
        self._check_same_model(saved)
        reply.begin(None, saved.text)
        yield saved.text

    def __repr__(self) -> str:
        spec = self.remote.spec
        state = ", closed" if self._closed else ""
        return f"<{type(self).__name__} {spec.name!r} {spec.num_blocks} blocks, {spec.fingerprint[:8]}{state}>"

    async def aclose(self) -> None:
        """End every reply and conversation that is still open, and the client. Closing twice is harmless."""
        self._closed = True
        for stream in list(self._streams):
            await stream.aclose()
        for talk in self._chats:
            await talk.aclose()
        await self.remote.close()

    async def __aenter__(self) -> AsyncModel:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


async def connect_async(model: str | os.PathLike[str] | None = None, **options: Any) -> AsyncModel:
    """Join a swarm and open a model: a hub id, a directory, a GGUF file, or (None) the one that the swarm serves.

    The keywords are the fields of `ConnectOptions`, and of `SessionOptions` and `RouteOptions` for all replies of the model.
    Raises UsageError for an option that makes no sense, or without tickets, invite or discoveries, NetworkError when no member
    answers, and what `open_model` raises.
    """
    asked, session = connect_options(options)
    name = None if model is None else _model_name(model)
    client = AsyncClient(
        asked.peers,
        invite=asked.invite,
        only=asked.transport,
        discoveries=asked.discoveries,
        activity=asked.activity,
    )
    await client.__aenter__()
    try:
        return AsyncModel(await open_model(client, name, asked.wait_s, asked.head, asked.fingerprint), session)
    except BaseException:
        await client.close()
        raise


def _model_name(model: Any) -> str:
    """What the caller calls the model; raises UsageError for what is no name, ModelNotFound where it can lead to nothing."""
    name = os.fspath(model) if isinstance(model, str | os.PathLike) else None
    if not isinstance(name, str):
        raise UsageError(f"a model is named by a text or a path, not by {kind_of(model)}", field="model")
    check_text("model", name)
    check_there(name)
    return name
