"""Generation: prefill, decode, stop."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence

import msgspec
from torch import Tensor

from shoal.client.remote_model import RemoteModel
from shoal.client.session.session import Session
from shoal.client.step_trace import StepTrace
from shoal.client.text_stream import TextStream
from shoal.errors import GrantExceeded, UsageError
from shoal.model.nn.sampling import SamplingParams


class Generation(msgspec.Struct):
    """A reply as it grows; complete when `finish_reason` is set ("stop", "length" or "stop string")."""

    prompt_ids: list[int]
    token_ids: list[int]
    text: str
    seed: int
    finish_reason: str = ""
    prefill_s: float = 0.0
    decode_s: float = 0.0
    prefill_rows: int = 0
    prefill_trace: StepTrace | None = None
    traces: list[StepTrace] = []
    exact: bool = True

    @property
    def prefill_tokens_per_s(self) -> float:
        """Prompt tokens computed per second until the first token was chosen."""
        return self.prefill_rows / self.prefill_s if self.prefill_s else 0.0

    @property
    def decode_tokens_per_s(self) -> float:
        """Tokens per second after the first."""
        steps = len(self.token_ids) - 1
        return steps / self.decode_s if steps > 0 and self.decode_s else 0.0


class Conversation:
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

    async def generate(
        self, prompt_ids: Sequence[int], params: SamplingParams, result: Generation | None = None
    ) -> AsyncIterator[str]:
        """Stream the reply's text; `result` fills up meanwhile. The text of tokens that it has already comes
        first.

        Leaving the iteration early cancels the reply at every hop. Raises UsageError for an empty prompt, GrantExceeded
        for one that leaves no room, and what makes a session fail.
        """
        result = result if result is not None else start(prompt_ids, params)
        stream = TextStream(self._model.tokenizer.decode, params.stop)
        result.text = "".join(map(stream.push, result.token_ids))
        if result.text:
            yield result.text
        self._keep()
        hidden = await self._prefill(result)
        while not result.finish_reason:
            started_at = time.perf_counter()
            position = len(result.prompt_ids) + len(result.token_ids)
            history = result.prompt_ids + result.token_ids
            token = await self._model.choose(hidden, params, result.seed, position, history, id(self))
            first = not result.token_ids
            result.token_ids.append(token)
            if token in self._model.tokenizer.eos_token_ids and not params.ignore_eos:
                result.finish_reason = "stop"
                piece = ""
            else:
                piece = stream.push(token)
                self._judge(result, params, stream)
            if result.finish_reason:
                piece += stream.finish()
            self._count(result, first, started_at)
            result.exact = self.session.exact
            result.text += piece
            self._keep()
            if piece:
                yield piece
            if not result.finish_reason:
                hidden = await self._decode(result, token)

    async def _prefill(self, result: Generation) -> Tensor:
        prompt = result.prompt_ids + result.token_ids
        shared = _common(self._held, prompt[:-1])  # the last token is always fed: its row is what is wanted
        await self.session.rewind(shared)
        del self._held[shared:]
        if len(prompt) > self.session.options.max_tokens:
            raise GrantExceeded(
                f"a prompt of {len(prompt)} tokens; the session holds {self.session.options.max_tokens}"
            )
        started_at = time.perf_counter()
        rows = await self._model.embed(prompt[shared:])
        hidden = await self.session.step(rows, reply=1)
        self._held += prompt[shared:]
        result.prefill_rows = len(prompt) - shared
        result.prefill_s = time.perf_counter() - started_at
        result.prefill_trace = self.session.last_trace
        return hidden

    async def _decode(self, result: Generation, token: int) -> Tensor:
        started_at = time.perf_counter()
        hidden = await self.session.step(await self._model.embed([token]))
        self._held.append(token)
        result.decode_s += time.perf_counter() - started_at
        if self.session.last_trace is not None:
            result.traces.append(self.session.last_trace)
        return hidden

    def _judge(self, result: Generation, params: SamplingParams, stream: TextStream) -> None:
        if stream.stopped:
            result.finish_reason = "stop string"
        elif len(result.token_ids) >= params.max_tokens or len(self._held) >= self.session.options.max_tokens:
            result.finish_reason = "length"

    @staticmethod
    def _count(result: Generation, first: bool, started_at: float) -> None:
        """The head's time belongs to the prefill for the first token and to the decoding for the others."""
        elapsed_s = time.perf_counter() - started_at
        if first:
            result.prefill_s += elapsed_s
        else:
            result.decode_s += elapsed_s


def start(prompt_ids: Sequence[int], params: SamplingParams) -> Generation:
    """An empty reply; a seed is drawn unless the caller gave one. Raises UsageError for an empty prompt."""
    if not prompt_ids:
        raise UsageError("the prompt has no tokens")
    seed = secrets.randbits(63) if params.seed is None else params.seed
    return Generation(list(prompt_ids), [], "", seed)


def _common(held: Sequence[int], wanted: Sequence[int]) -> int:
    """How many first tokens two sequences share."""
    count = 0
    for ours, theirs in zip(held, wanted, strict=False):
        if ours != theirs:
            break
        count += 1
    return count
