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
        reply.session = self.session
        stream = TextStream(self._model.tokenizer.decode, reply.params.stop)
        reply.text = "".join(map(stream.push, reply.token_ids))
        if reply.text:
            yield reply.text
        self._keep()
        hidden = await self._prefill(reply)
        while not reply.finish_reason:
            started_at = time.perf_counter()
            position = len(reply.prompt_ids) + len(reply.token_ids)
            history = reply.prompt_ids + reply.token_ids
            token = await self._model.choose(hidden, reply.params, reply.seed, position, history, id(self))
            first = not reply.token_ids
            reply.token_ids.append(token)
            if token in self._model.tokenizer.eos_token_ids and not reply.params.ignore_eos:
                reply.finish_reason = "stop"
                piece = ""
            else:
                piece = stream.push(token)
                self._judge(reply, stream)
            if reply.finish_reason:
                piece += stream.finish()
            self._count(reply, first, started_at)
            reply.exact = self.session.exact
            reply.text += piece
            self._keep()
            if piece:
                yield piece
            if not reply.finish_reason:
                hidden = await self._decode(reply, token)

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
        reply.cached_tokens = min(shared, len(reply.prompt_ids))
        reply.prefill_tokens = len(prompt) - shared
        reply.prefill_s = time.perf_counter() - started_at
        return hidden

    async def _decode(self, reply: GrowingReply, token: int) -> Tensor:
        started_at = time.perf_counter()
        hidden = await self.session.step(await self._model.embed([token]))
        self._held.append(token)
        reply.decode_s += time.perf_counter() - started_at
        if self.session.last_trace is not None:
            reply.traces.append(self.session.last_trace)
        return hidden

    def _judge(self, reply: GrowingReply, stream: TextStream) -> None:
        full = len(self._held) >= self.session.options.max_tokens
        if stream.stopped:
            reply.finish_reason = "stop string"
        elif len(reply.token_ids) >= reply.params.max_tokens or full:
            reply.finish_reason = "length"

    @staticmethod
    def _count(reply: GrowingReply, first: bool, started_at: float) -> None:
        """The head's time belongs to the prefill for the first token and to the decoding for the others."""
        elapsed_s = time.perf_counter() - started_at
        if first:
            reply.prefill_s += elapsed_s
        else:
            reply.decode_s += elapsed_s


def _common(held: Sequence[int], wanted: Sequence[int]) -> int:
    """How many first tokens two sequences share."""
    count = 0
    for ours, theirs in zip(held, wanted, strict=False):
        if ours != theirs:
            break
        count += 1
    return count
