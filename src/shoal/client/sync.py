"""The blocking face of the client: the same model, from code without an event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import msgspec

from shoal.client.client import ROUTE_WAIT_S, AsyncClient
from shoal.client.generation import Conversation, Generation, start
from shoal.client.remote_model import RemoteModel, open_model
from shoal.client.reply import Reply
from shoal.client.saved_reply import SavedReply
from shoal.client.session.route_state import FailoverEvent
from shoal.errors import UsageError
from shoal.model.nn.sampling import SamplingParams
from shoal.swarm.discovery.discovery_options import Discoveries
from shoal.swarm.membership.storage import PrivateSwarm
from shoal.types import Route

T = TypeVar("T")

KEEP_S = 300.0
"""How long servers are asked to hold the session of a reply that is kept in a file."""

CLOSE_S = 30.0
"""How long work that was cancelled may take to clean up."""


class _Loop:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="shoal-client", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run to the end; Ctrl-C cancels the work, and `close` waits until it has cleaned up."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except KeyboardInterrupt:
            future.cancel()
            raise

    def iterate(self, stream: AsyncIterator[T]) -> Iterator[T]:
        """Hand on what an asynchronous iterator gives; leaving early closes it."""
        try:
            while True:
                try:
                    item = self.run(_next(stream))
                except StopAsyncIteration:
                    return
                yield item
        finally:
            self.run(_close(stream))

    def close(self) -> None:
        """Stop the loop, after what still runs in it was cancelled and has cleaned up. Closing twice is harmless."""
        if self._loop.is_running():
            asyncio.run_coroutine_threadsafe(_cancel_all(), self._loop).result(CLOSE_S)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()


async def _cancel_all() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_default_executor()


async def _next(stream: AsyncIterator[T]) -> T:
    return await anext(stream)


async def _joined(pieces: AsyncIterator[str]) -> str:
    try:
        return "".join([piece async for piece in pieces])
    finally:
        await _close(pieces)


async def _close(stream: AsyncIterator[Any]) -> None:
    close = getattr(stream, "aclose", None)
    if close is not None:
        await close()


class Chat:
    """A conversation that keeps its session; made by `Model.chat`."""

    def __init__(self, model: Model, conversation: Conversation, system: str | None) -> None:
        self.messages: list[dict[str, str]] = [{"role": "system", "content": system}] if system else []
        self.last: Generation | None = None
        self._model = model
        self._conversation = conversation

    def say(self, text: str, **sampling: Any) -> Iterator[str]:
        """Say something and stream the answer. An answer that is left early is kept as far as it came."""
        self.messages.append({"role": "user", "content": text})
        prompt = self._model.remote.tokenizer.encode_chat(self.messages)
        params = SamplingParams(**sampling)
        self.last = result = start(prompt, params)
        try:
            yield from self._model._iterate(self._conversation.generate(prompt, params, result))
        finally:
            self.messages.append({"role": "assistant", "content": result.text})

    def close(self) -> None:
        """End the session. Closing twice is harmless."""
        self._model._run(self._conversation.session.close())

    def __enter__(self) -> Chat:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Model:
    """A model of a swarm; made by `connect`. Close it, or use `with`."""

    def __init__(self, loop: _Loop, remote: RemoteModel) -> None:
        self.remote = remote
        self.reply: Reply | None = None
        self._loop = loop

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._loop.run(work)

    def _iterate(self, stream: AsyncIterator[T]) -> Iterator[T]:
        return self._loop.iterate(stream)

    def stream(
        self,
        prompt: str,
        *,
        raw: bool = True,
        wait_s: float = ROUTE_WAIT_S,
        save: Path | None = None,
        keep_s: float = KEEP_S,
        **sampling: Any,
    ) -> Iterator[str]:
        """Stream the continuation of a text (`raw`), or the answer to it in the model's chat template (`raw=False`).

        `sampling` are the fields of SamplingParams. `last` is the reply with its tokens, times and traces. With `save` the
        reply is kept in a file from which `resume` goes on, in another process too; servers hold its session for `keep_s`.
        """
        yield from self._iterate(self._begin(prompt, raw, wait_s, save, keep_s, **sampling))

    def generate(self, prompt: str, **options: Any) -> str:
        """The whole reply at once; options as for `stream`. No token waits until another thread has seen the one before."""
        return self._run(_joined(self._begin(prompt, **options)))

    def _begin(
        self,
        prompt: str,
        raw: bool = True,
        wait_s: float = ROUTE_WAIT_S,
        save: Path | None = None,
        keep_s: float = KEEP_S,
        **sampling: Any,
    ) -> AsyncIterator[str]:
        params, tokenizer = SamplingParams(**sampling), self.remote.tokenizer
        prompt_ids = tokenizer.encode(prompt) if raw else tokenizer.encode_chat([{"role": "user", "content": prompt}])
        options = self.remote.session_options(len(prompt_ids) + params.max_tokens)
        if save is not None:
            options = msgspec.structs.replace(options, keep_s=keep_s)
        self.reply = Reply(self.remote, start(prompt_ids, params), params, save)
        return self.reply.stream(options, wait_s)

    def resume(self, saved: SavedReply, save: Path | None = None, *, wait_s: float = ROUTE_WAIT_S) -> Iterator[str]:
        """Go on with a reply that `read_saved` has read; streams its text from the beginning.

        Servers that still hold its session go on from there, the others get its rows again; whoever wrote the file is
        fenced off. Raises FingerprintMismatch for another model's reply, and what a session raises.
        """
        generation = Generation(saved.prompt_ids, saved.token_ids, "", saved.seed, saved.finish_reason)
        self.reply = Reply(self.remote, generation, saved.params, save)
        yield from self._iterate(self.reply.resume(saved, wait_s))

    @property
    def last(self) -> Generation | None:
        """The reply that was made last, or is being made."""
        return self.reply.generation if self.reply is not None else None

    @property
    def last_route(self) -> Route:
        """Its hops, in order."""
        return self.reply.session.route if self.reply is not None and self.reply.session is not None else ()

    @property
    def last_hop_names(self) -> tuple[str, ...]:
        """Their names for people."""
        return self.reply.session.hop_names if self.reply is not None and self.reply.session is not None else ()

    @property
    def last_failovers(self) -> list[FailoverEvent]:
        """What was repaired in its session; the first entry is the opening."""
        return self.reply.session.failovers if self.reply is not None and self.reply.session is not None else []

    def chat(self, system: str | None = None, *, max_tokens: int = 4096, wait_s: float = ROUTE_WAIT_S) -> Chat:
        """A conversation of up to `max_tokens` tokens in one session."""
        remote = self.remote
        session = self._run(remote.client.open_session(remote.spec, remote.session_options(max_tokens), wait_s))
        return Chat(self, Conversation(remote, session), system)

    def close(self) -> None:
        """Close the model and its client. Closing twice is harmless."""
        if self._loop._loop.is_running():
            self._run(self.remote.close())
            self._loop.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def connect(
    model: str | None = None,
    *,
    peers: Sequence[str] = (),
    invite: str | PrivateSwarm | None = None,
    transport: str | None = None,
    discoveries: Discoveries | None = None,
    wait_s: float = ROUTE_WAIT_S,
    head: str = "float32",
) -> Model:
    """Join a swarm by its tickets and open a model: a hub id, a directory, a GGUF file, or (None) the one it serves.

    Embedding and head are computed here, in `head`: "float32", "bfloat16" or "int8".

    For a private swarm give an invite, or a PrivateSwarm by the name under which it is kept. Raises UsageError without
    tickets, invite or discoveries, NetworkError when nobody answers, and what `open_model` raises.
    """
    if isinstance(peers, str):
        raise UsageError("peers is a list of tickets, not one string")
    loop = _Loop()
    try:
        client = AsyncClient(peers, invite=invite, only=transport, discoveries=discoveries)
        return Model(loop, loop.run(_open(model, client, wait_s, head)))
    except BaseException:
        loop.close()
        raise


async def _open(model: str | None, client: AsyncClient, wait_s: float, head: str) -> RemoteModel:
    await client.__aenter__()
    try:
        return await open_model(client, model, wait_s, head)
    except BaseException:
        await client.close()
        raise
