"""Replies that are made at the same time, and when each of their tokens came."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections.abc import Sequence
from typing import NamedTuple

from shoal.client.client_options import SessionOptions
from shoal.client.completion import GrowingReply
from shoal.client.decoder import SessionDecoder
from shoal.client.remote_model import RemoteModel
from shoal.errors import UsageError
from shoal.model.nn.sampling_params import SamplingParams
from shoal.model.weights.tokenizer import Tokenizer

TEXT = "The history of the sea begins with rain that fell for longer than anybody can imagine. "


class Timed:
    """One greedy reply of `count` tokens; `times` are when they came, in seconds of time.time()."""

    def __init__(self, model: RemoteModel, prompt_ids: Sequence[int], count: int) -> None:
        self.times: list[float] = []
        self.grown = asyncio.Event()
        self.result = GrowingReply(prompt_ids, SamplingParams(max_tokens=count, ignore_eos=True, temperature=0.0))
        self._model = model

    async def run(self) -> None:
        """All of it, in a session of its own."""
        model, result = self._model, self.result
        options = SessionOptions(max_tokens=len(result.prompt_ids) + result.params.max_tokens)
        async with model.client.session(model.spec, options=options) as session:
            async for _ in SessionDecoder(model, session, keep=self._note).generate(result):
                pass

    def _note(self) -> None:
        if len(self.result.token_ids) > len(self.times):
            self.times.append(time.time())
            self.grown.set()

    async def until(self, count: int) -> None:
        """Wait until so many tokens are there."""
        while len(self.times) < count:
            self.grown.clear()
            await self.grown.wait()

    def gaps_s(self, since: float = float("-inf"), until: float = float("inf")) -> list[float]:
        """Times between two tokens, of those that lie within a window."""
        inside = [at for at in self.times if since <= at <= until]
        return [after - before for before, after in itertools.pairwise(inside)]


class Rates(NamedTuple):
    """Tokens per second: of all together, and of each."""

    total: float
    each: list[float]

    @property
    def fairness(self) -> float:
        """The worst-off one's rate ÷ an equal share."""
        return min(self.each) / statistics.mean(self.each)


def rates(times: Sequence[Sequence[float]]) -> Rates:
    """From when each one's tokens came, while all were decoding."""
    since, until = max(own[0] for own in times), min(own[-1] for own in times)
    if since >= until:
        raise UsageError("the replies are too short: one ended before another had begun (raise --tokens)")
    each = [sum(since < at <= until for at in own) / (until - since) for own in times]
    return Rates(sum(each), each)


async def together(replies: Sequence[Timed]) -> Rates:
    """Make replies at the same time."""
    async with asyncio.TaskGroup() as group:
        for reply in replies:
            group.create_task(reply.run())
    return rates([reply.times for reply in replies])


def prompts(model: RemoteModel, count: int) -> list[list[int]]:
    """So many prompts, each longer than the one before and different from its first token on."""
    tokenizer = model.tokenizer
    return [tokenizer.encode(f"{index + 1}. " + TEXT * (1 + index)) for index in range(count)]


_numbers = itertools.count(1)


def long_prompt(tokenizer: Tokenizer, num_tokens: int) -> list[int]:
    """A prompt of just so many tokens that nobody has asked for before: no server finds its beginning in a cache."""
    first, ids = tokenizer.encode(f"{next(_numbers)}. "), tokenizer.encode(TEXT)
    return (first + ids * (num_tokens // len(ids) + 1))[:num_tokens]


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` of the values do not exceed."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]
