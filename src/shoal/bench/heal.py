"""`shoal bench heal`: replies whose servers fail in the middle, against the same replies left in peace."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec

from shoal.bench.clientkill import killed_and_resumed
from shoal.bench.report import commit, hardware
from shoal.client.client import AsyncClient
from shoal.client.generate import Conversation, Generation, start
from shoal.client.model import RemoteModel, open_model
from shoal.client.options import SessionOptions
from shoal.client.session import Session
from shoal.errors import ShoalError
from shoal.nn.sampling import SamplingParams
from shoal.testing.faults import Faults
from shoal.testing.scene import DAMAGES, SERVERS_PER_SPAN, Scene
from shoal.testing.troupe import Troupe
from shoal.weights.source import demo_model_path

PROMPTS = (
    "The sea is large and the fish are many, and none of them has ever seen the whole of it.",
    "A school of fish has no leader.",
    "When one of them turns, those beside it turn as well, and those beside these; nobody gave the order.",
)
SEEDS = (None, 7)
"""Greedy, and drawn with a seed."""

REPLY_TOKENS = 32
MAX_SESSIONS = 3
RUN_S = 90.0
TINY_SHARE = 0.9
"""Of the runs; the others are on the demo's model."""


class Run(msgspec.Struct):
    """One disturbed run: what was done, and what came of it. Times in seconds."""

    seed: int
    model: str
    kind: str
    at_token: int
    sessions: int
    identical: bool = False
    pause_s: float = 0.0
    detection_s: float | None = None
    replayed_rows: int = 0
    repeated_rows: int = 0
    error: str = ""


CLIENT_KILL = "client_kill"
KINDS = (*DAMAGES, CLIENT_KILL)


class Reply:
    """A generation in a session of its own, and when its tokens came."""

    def __init__(self, model: RemoteModel, prompt: str, seed: int | None) -> None:
        self.key = (prompt, seed)
        self.params = SamplingParams(
            max_tokens=REPLY_TOKENS, ignore_eos=True, seed=seed, temperature=0.0 if seed is None else 1.0
        )
        self.result: Generation = start(model.tokenizer.encode(prompt), self.params)
        self.session: Session | None = None
        self.times: list[float] = []
        self._model = model

    async def run(self) -> None:
        """All of it."""
        model = self._model
        options = SessionOptions(max_tokens=len(self.result.prompt_ids) + REPLY_TOKENS, prefill_chunk_rows=8)
        async with model.client.session(model.spec, options=options) as session:
            self.session = session
            async for _ in Conversation(model, session).generate(self.result.prompt_ids, self.params, self.result):
                self.times.append(time.monotonic())

    def expected_rows(self, name: str) -> int:
        """What a server computes for this session when each opening of it there costs every row once."""
        if self.session is None:
            return 0
        return self.session.position * sum(heal.found.count(name) for heal in self.session.heals)

    @property
    def pause_s(self) -> float:
        """The longest gap between two pieces of text."""
        return max((after - before for before, after in zip(self.times, self.times[1:], strict=False)), default=0.0)


Expected = dict[tuple[str, int | None], list[int]]


def run(runs: int, seed: int = 1, progress: Callable[[Run], None] | None = None) -> dict[str, Any]:
    """So many disturbed runs, each kind of damage in turn, most on a tiny checkpoint; a seed names the same runs again."""
    return asyncio.run(_run(runs, seed, progress or _show))


def _show(one: Run) -> None:
    verdict = "same tokens" if one.identical else f"DIFFERENT {one.error}"
    line = f"{one.seed} {one.kind:9} after {one.at_token:2} tokens, {one.sessions} sessions: {verdict}, {one.pause_s:.2f} s"
    print(line, file=sys.stderr, flush=True)


async def _run(runs: int, seed: int, progress: Callable[[Run], None]) -> dict[str, Any]:
    began = time.monotonic()
    tiny = round(runs * TINY_SHARE)
    done: list[Run] = []
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "tiny"
        make_tiny(model)
        os.environ["SHOAL_MODELS"] = folder
        for path, count, first in ((model, tiny, 0), (demo_model_path(), runs - tiny, tiny)):
            if count:
                done += await perform(str(path), range(seed * 1000 + first, seed * 1000 + first + count), progress)
    return {
        "name": "heal",
        "runs": len(done),
        "identical": sum(one.identical for one in done),
        "kinds": {kind: _summary([one for one in done if one.kind == kind]) for kind in KINDS},
        "failed": [msgspec.to_builtins(one) for one in done if not one.identical],
        "total_s": time.monotonic() - began,
        "hardware": hardware(),
        "commit": commit(),
    }


def make_tiny(folder: Path, max_positions: int = 512) -> None:
    """A random Llama of six blocks with a byte tokenizer."""
    from shoal.testing.tiny import tiny_llama, tiny_tokenizer

    folder.mkdir()
    tiny_llama(folder, num_hidden_layers=6, vocab_size=258, max_position_embeddings=max_positions)
    tiny_tokenizer(folder, vocab_size=258)


def _summary(runs: list[Run]) -> dict[str, Any]:
    pauses = sorted(one.pause_s for one in runs)
    found = sorted(one.detection_s for one in runs if one.detection_s is not None)
    return {
        "runs": len(runs),
        "identical": sum(one.identical for one in runs),
        "pause_s": _spread(pauses),
        "detection_s": _spread(found),
        "replayed_rows": sum(one.replayed_rows for one in runs),
        "repeated_rows": sum(one.repeated_rows for one in runs),
    }


def _spread(values: list[float]) -> dict[str, float]:
    if not values:
        return {}
    return {
        "median": statistics.median(values),
        "p95": values[min(len(values) - 1, round(0.95 * len(values)))],
        "max": values[-1],
    }


@contextlib.asynccontextmanager
async def scene_of(model: str) -> AsyncIterator[Scene]:
    """A swarm of three spans with spares, and a client."""
    from shoal.cli.swarm import divide, num_blocks

    spans = divide(num_blocks(model), 3) * SERVERS_PER_SPAN
    faults = Faults()
    async with Troupe(model, spans, memory_bytes=1 << 30) as troupe:
        tickets = [actor.ticket for actor in troupe.live]
        async with AsyncClient(tickets, only="tls", wrap=faults.wrap) as client:
            async with await open_model(client, model) as remote:
                scene = Scene(troupe, client, remote, faults)
                try:
                    yield scene
                finally:
                    await scene.close()


async def perform(
    model: str, seeds: range, progress: Callable[[Run], None] = lambda run: None, kinds: list[str] | None = None
) -> list[Run]:
    """One run for each seed; the seed says what happens when, the kind of damage goes round."""
    runs: list[Run] = []
    kinds = kinds or list(KINDS)
    async with scene_of(model) as scene:
        expected = await undisturbed(scene.model)
        for index, seed in enumerate(seeds):
            await scene.restore()
            kind = kinds[index % len(kinds)]
            runs.append(await (_client_killed if kind == CLIENT_KILL else _disturbed)(scene, expected, seed, kind))
            progress(runs[-1])
    return runs


async def undisturbed(model: RemoteModel) -> Expected:
    expected: Expected = {}
    for prompt in PROMPTS:
        for seed in SEEDS:
            reply = Reply(model, prompt, seed)
            await reply.run()
            expected[reply.key] = reply.result.token_ids
    return expected


async def _disturbed(scene: Scene, expected: Expected, seed: int, kind: str) -> Run:
    rng = random.Random(seed)
    sessions = rng.randint(1, MAX_SESSIONS)
    at_token = rng.choice([0, *range(1, REPLY_TOKENS - 4)])
    one = Run(seed, Path(scene.model.spec.name).stem, kind, at_token, sessions)
    replies = [Reply(scene.model, rng.choice(PROMPTS), rng.choice(SEEDS)) for _ in range(sessions)]
    rows = await scene.rows()
    tasks = [asyncio.ensure_future(reply.run()) for reply in replies]
    try:
        async with asyncio.timeout(RUN_S):
            first = replies[0]
            # Tokens set no event, and a millisecond is exact enough.
            while not tasks[0].done() and (first.session is None or len(first.result.token_ids) < at_token):  # noqa: ASYNC110
                await asyncio.sleep(0.001)  # tokens set no event, and a millisecond is exact enough
            assert first.session is not None
            route = [scene.troupe.of(hop.peer) for hop in first.session.route]
            struck_at = time.monotonic()
            await DAMAGES[kind](scene, route, rng)
            await asyncio.gather(*tasks)
        one.identical = all(reply.result.token_ids == expected[reply.key] for reply in replies)
    except (ShoalError, TimeoutError, AssertionError) as error:
        one.error = f"{type(error).__name__}: {error}"
        struck_at = time.monotonic()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    _measure(one, replies, struck_at)
    one.repeated_rows = _repeated(await scene.rows(), rows, replies)
    return one


async def _client_killed(scene: Scene, expected: Expected, seed: int, kind: str) -> Run:
    rng = random.Random(seed)
    reply = Reply(scene.model, rng.choice(PROMPTS), rng.choice(SEEDS))
    one = Run(seed, Path(scene.model.spec.name).stem, kind, rng.randrange(REPLY_TOKENS - 12), 1)
    sampling = {name: value for name, value in msgspec.structs.asdict(reply.params).items() if name != "stop"}
    try:
        async with asyncio.timeout(RUN_S):
            tokens, one.pause_s = await killed_and_resumed(scene, reply.key[0], sampling, one.at_token)
        one.identical = tokens == expected[reply.key]
    except (ShoalError, TimeoutError) as error:
        one.error = f"{type(error).__name__}: {error}"
    return one


def _repeated(after: dict[str, int], before: dict[str, int], replies: list[Reply]) -> int:
    """Rows that servers computed beyond one for each position of each session that was opened there."""
    return sum(
        max(0, after[name] - before[name] - sum(reply.expected_rows(name) for reply in replies))
        for name in after.keys() & before.keys()
    )


def _measure(one: Run, replies: list[Reply], struck_at: float) -> None:
    one.pause_s = max(reply.pause_s for reply in replies)
    heals = [heal for reply in replies if reply.session for heal in reply.session.heals[1:]]
    one.replayed_rows = sum(heal.replayed_rows for heal in heals)
    found = [heal.began_at - struck_at for heal in heals if heal.lost and heal.began_at >= struck_at]
    one.detection_s = min(found, default=None)
