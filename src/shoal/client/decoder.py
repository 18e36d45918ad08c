"""Prefill, decode, stop: a reply's tokens from a session."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Sequence

from torch import Tensor

from shoal.client.completion import GrowingReply
from shoal.client.remote_model import RemoteModel
from shoal.client.session.session import Session
from shoal.client.text_stream import TextStream
from shoal.errors import GrantExceeded


class SessionDecoder:
    """A session and the tokens that it holds; a prompt that shares a beginning with them costs only its rest.

    `keep` is called whenever a reply has grown, before its newest token goes into the session.
    """

    def __init__(
        self, model: RemoteModel, session: Session, held: Sequence[int] = (), keep: Callable[[], None] = lambda: None
    ) -> None:
        self.session = session
        self._model = model
        self._held = list(held)
        self._keep = keep

    async def generate(self, reply: GrowingReply) -> AsyncGenerator[str, None]:
        """Stream a reply's text; the text of tokens that it has already comes first.

        Leaving the iteration early cancels the reply at every hop. Raises GrantExceeded for a prompt that leaves no room, and
        what makes a session fail.
        """
        tokenizer, params = self._model.tokenizer, reply.params
        stream = TextStream(tokenizer.decode, params.stop, reply.prompt_ids)
        ends = frozenset() if params.ignore_eos else tokenizer.eos_token_ids
        stops = {tokenizer.special_token(stop) for stop in params.stop}  # no text ever shows these
        reply.begin(self.session, "".join(map(stream.push, reply.token_ids)))
        if reply.text:
            yield reply.text
        self._keep()
        try:
            hidden = await self._prefill(reply)
            while not reply.finish_reason:
                started_at = time.perf_counter()
                position = len(reply.prompt_ids) + len(reply.token_ids)
                history = reply.prompt_ids + reply.token_ids
                token = await self._model.choose(hidden, reply.params, reply.seed, position, history, id(self))
                reason = "stop" if token in ends else "stop string" if token in stops else ""
                piece = "" if reason else stream.push(token)
                reason = reason or self._limit(reply, stream)
                if reason:
                    piece += stream.finish()
                reply.grow(token, piece, reason, self.session.exact, time.perf_counter() - started_at)
                self._keep()
                if piece:
                    yield piece
                if not reply.finish_reason:
                    hidden = await self._decode(reply, token)
        finally:
            self._model.forget(id(self))

    async def _prefill(self, reply: GrowingReply) -> Tensor:
        prompt = reply.prompt_ids + reply.token_ids
        shared = _common(self._held, prompt[:-1])  # the last token is always fed: its row is what is wanted
        await self.session.rewind(shared)
        del self._held[shared:]
        room = self.session.options.max_tokens
        if len(prompt) > room:
            raise GrantExceeded(f"a prompt of {len(prompt)} tokens; the session holds {room}")
        started_at = time.perf_counter()
        rows = await self._model.embed(prompt[shared:])
        hidden = await self.session.step(rows, reply=1)
        self._held += prompt[shared:]
        reply.prefilled(shared, time.perf_counter() - started_at)
        return hidden

    async def _decode(self, reply: GrowingReply, token: int) -> Tensor:
        started_at = time.perf_counter()
        hidden = await self.session.step(await self._model.embed([token]))
        self._held.append(token)
        reply.decoded(time.perf_counter() - started_at, self.session.last_trace)
        return hidden

    def _limit(self, reply: GrowingReply, stream: TextStream) -> str:
        """Why the next token is the reply's last; empty if it is not."""
        if stream.stopped:
            return "stop string"
        full = len(self._held) >= self.session.options.max_tokens
        return "length" if full or len(reply.token_ids) + 1 >= reply.params.max_tokens else ""


def _common(held: Sequence[int], wanted: Sequence[int]) -> int:
    """How many first tokens two sequences share."""
    count = 0
    for ours, theirs in zip(held, wanted, strict=False):
        if ours != theirs:
            break
        count += 1
    return count
