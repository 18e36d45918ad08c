"""Replies as values: a finished one, and one that is still growing."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Sequence
from types import TracebackType

import msgspec

from shoal.client.session.route_state import FailoverEvent
from shoal.client.session.session import Session
from shoal.client.step_trace import StepTrace
from shoal.errors import UsageError
from shoal.model.nn.sampling_params import SamplingParams
from shoal.types import PeerId, Span

SEED_BITS = 53
"""Of a seed that is drawn: every reader of JSON keeps whole numbers of so many."""

SHOWN_CHARACTERS = 60
"""Of a reply's text in its `repr`."""


class RouteHop(msgspec.Struct, frozen=True):
    """A server that computed for a reply: its node id, its name for people, its blocks."""

    peer: PeerId
    name: str
    span: Span


class Usage(msgspec.Struct, frozen=True):
    """Tokens of the prompt and of the reply; `cached_tokens` of the prompt were held by the session already."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


class Timings(msgspec.Struct, frozen=True):
    """Seconds until the first token was chosen, and for the tokens after it; rows and tokens that took them."""

    prefill_s: float
    decode_s: float
    prefill_tokens: int
    decode_tokens: int

    @property
    def prefill_tokens_per_s(self) -> float:
        """Prompt tokens computed per second until the first token was chosen."""
        return self.prefill_tokens / self.prefill_s if self.prefill_s else 0.0

    @property
    def decode_tokens_per_s(self) -> float:
        """Tokens per second after the first."""
        return self.decode_tokens / self.decode_s if self.decode_s else 0.0


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """A reply. `str` gives its text.

    `finish_reason`: "stop", "length", "stop string"; empty for a reply that was left early. `exact`: every row has the bits
    that an undisturbed run gives. `failovers`: what was repaired meanwhile. `traces`: where each decoded token's time went.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    usage: Usage
    route: tuple[RouteHop, ...]
    timings: Timings
    failovers: tuple[FailoverEvent, ...]
    seed: int
    exact: bool
    traces: tuple[StepTrace, ...]
    prompt_ids: tuple[int, ...]

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"<Completion {_described(self.text, self.usage, self.finish_reason or 'left early')}>"


class GrowingReply:
    """A reply as it is made: the decoder fills it, streams show it. `session` is None before one is open."""

    def __init__(
        self,
        prompt_ids: Sequence[int] | None,
        params: SamplingParams,
        token_ids: Sequence[int] = (),
        seed: int | None = None,
        finish_reason: str = "",
    ) -> None:
        """A seed is drawn unless it is given here or in `params`; a `finish_reason` is that of a saved reply that has ended.

        A prompt whose tokens are not known yet (None) is `ask`ed later. Raises UsageError for an empty one.
        """
        given = params.seed if seed is None else seed
        self.params = params
        self.prompt_ids: list[int] = []
        if prompt_ids is not None:
            self.ask(prompt_ids)
        self.token_ids = list(token_ids)
        self.seed = secrets.randbits(SEED_BITS) if given is None else given
        self.text = ""
        self.finish_reason = finish_reason
        self.session: Session | None = None
        self.cached_tokens = 0
        self.prefill_s = 0.0
        self.decode_s = 0.0
        self.prefill_tokens = 0
        self.traces: list[StepTrace] = []
        self.exact = True

    def ask(self, prompt_ids: Sequence[int]) -> None:
        """These are the prompt's tokens. Raises UsageError for none."""
        if not prompt_ids:
            raise UsageError("the prompt has no tokens")
        self.prompt_ids = list(prompt_ids)

    def begin(self, session: Session | None, text: str) -> None:
        """The text of the tokens that are there already, and the session that computes the others, if any are to come."""
        self.session = session
        self.text = text

    def prefilled(self, shared_tokens: int, elapsed_s: float) -> None:
        """The session holds all tokens so far; it held the first `shared_tokens` of them before."""
        self.cached_tokens = min(shared_tokens, len(self.prompt_ids))
        self.prefill_tokens = len(self.prompt_ids) + len(self.token_ids) - shared_tokens
        self.prefill_s = elapsed_s

    def grow(self, token: int, piece: str, finish_reason: str, exact: bool, elapsed_s: float) -> None:
        """A token was chosen and gave this text. `elapsed_s` belongs to the prefill for the first token of all."""
        if self.token_ids:
            self.decode_s += elapsed_s
        else:
            self.prefill_s += elapsed_s
        self.token_ids.append(token)
        self.text += piece
        self.finish_reason = finish_reason
        self.exact = exact

    def decoded(self, elapsed_s: float, trace: StepTrace | None) -> None:
        """The newest token's row went through the session."""
        self.decode_s += elapsed_s
        if trace is not None:
            self.traces.append(trace)


class CompletionFields:
    """What can be seen of a reply, growing or finished, by the names that `Completion` has."""

    def __init__(self, reply: GrowingReply) -> None:
        self._reply = reply

    @property
    def reply(self) -> GrowingReply:
        """What grows."""
        return self._reply

    @property
    def text(self) -> str:
        """The text so far."""
        return self._reply.text

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The tokens so far."""
        return tuple(self._reply.token_ids)

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """The prompt's tokens; none before a prompt has been put into the chat template, which reading begins with."""
        return tuple(self._reply.prompt_ids)

    @property
    def finish_reason(self) -> str:
        """Why it ended; empty while it grows."""
        return self._reply.finish_reason

    @property
    def seed(self) -> int:
        """The seed that was given or drawn."""
        return self._reply.seed

    @property
    def exact(self) -> bool:
        """Whether every row so far has the bits that an undisturbed run gives."""
        return self._reply.exact

    @property
    def usage(self) -> Usage:
        """Tokens so far."""
        reply = self._reply
        return Usage(len(reply.prompt_ids), reply.cached_tokens, len(reply.token_ids))

    @property
    def route(self) -> tuple[RouteHop, ...]:
        """The hops, in order; none before the session is open."""
        session = self._reply.session
        if session is None:
            return ()
        return tuple(
            RouteHop(hop.peer, name, hop.span) for hop, name in zip(session.route, session.hop_names, strict=False)
        )

    @property
    def timings(self) -> Timings:
        """Seconds so far."""
        reply = self._reply
        return Timings(reply.prefill_s, reply.decode_s, reply.prefill_tokens, max(0, len(reply.token_ids) - 1))

    @property
    def failovers(self) -> tuple[FailoverEvent, ...]:
        """What was repaired so far."""
        session = self._reply.session
        return () if session is None else tuple(session.failovers[1:])  # the first entry is the opening

    @property
    def traces(self) -> tuple[StepTrace, ...]:
        """Where each decoded token's time went, so far."""
        return tuple(self._reply.traces)

    @property
    def completion(self) -> Completion:
        """The reply as a value, as far as it has come."""
        return Completion(
            text=self.text,
            token_ids=self.token_ids,
            finish_reason=self.finish_reason,
            usage=self.usage,
            route=self.route,
            timings=self.timings,
            failovers=self.failovers,
            seed=self.seed,
            exact=self.exact,
            traces=self.traces,
            prompt_ids=self.prompt_ids,
        )

    def __repr__(self) -> str:
        described = _described(self.text, self.usage, self.finish_reason or "growing")
        return f"<{type(self).__name__} {described}>"


class AsyncCompletionStream(CompletionFields):
    """A reply's text, piece by piece. Nothing happens before the first piece is asked for.

    From then until it ends the stream is in `opened`. Leaving `async with`, or `aclose`, cancels a reply that has not ended at
    every hop. One reader at a time.
    """

    def __init__(
        self, reply: GrowingReply, pieces: AsyncGenerator[str, None], opened: set[AsyncCompletionStream]
    ) -> None:
        super().__init__(reply)
        self._pieces = pieces
        self._opened = opened
        self._reader: asyncio.Task[object] | None = None
        self._at_rest = asyncio.Event()
        self._closed = False

    def __aiter__(self) -> AsyncCompletionStream:
        return self

    async def __anext__(self) -> str:
        piece = await self.next_piece()
        if piece is None:
            raise StopAsyncIteration
        return piece

    async def next_piece(self) -> str | None:
        """The next piece of text, None at the end; raises what a session raises."""
        if self._closed:
            return None
        if self._reader is not None:
            raise UsageError("this reply is read already: one reader at a time")
        self._opened.add(self)
        self._reader = reader = asyncio.current_task()
        self._at_rest.clear()
        piece: str | None = None
        try:
            piece = await anext(self._pieces, None)
        except asyncio.CancelledError:
            if not self._closed or reader is None or reader.uncancel():
                raise
            # Closed by another task: for its reader the reply is over.
        finally:
            self._reader = None
            self._at_rest.set()
            if piece is None:
                self._opened.discard(self)
        return piece

    async def finish(self) -> Completion:
        """Generate to the end."""
        async with self:
            while await self.next_piece() is not None:
                pass
        return self.completion

    async def aclose(self) -> None:
        """End the reply where it is. Closing twice is harmless."""
        self._closed = True
        if self._reader is None:
            await self._pieces.aclose()
        elif self._reader is not asyncio.current_task():
            self._reader.cancel()
            await self._at_rest.wait()
        self._opened.discard(self)

    async def __aenter__(self) -> AsyncCompletionStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


def _described(text: str, usage: Usage, state: str) -> str:
    shown = text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 1] + "…"
    return f"{shown!r} {usage.completion_tokens} tokens, {state}"
