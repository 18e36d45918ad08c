"""Replies that are disturbed in the middle: a swarm of processes, what is done to it, and what came of the reply."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import msgspec

from bench.clientkill import killed_and_resumed
from shoal.client.client import AsyncClient
from shoal.client.client_options import SessionOptions
from shoal.client.completion import GrowingReply
from shoal.client.decoder import SessionDecoder
from shoal.client.remote_model import RemoteModel, open_model
from shoal.client.session.session import Session
from shoal.errors import ShoalError
from shoal.model.nn.sampling_params import SamplingParams
from tests.support.fault_scenario import DAMAGES, SERVERS_PER_SPAN, FaultScenario
from tests.support.faults import Faults
from tests.support.server_cluster import ServerCluster

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
RACED = "tls+iroh"
"""Both transports at every node, as `shoal demo` has them: every dial is a race between them."""


class Run(msgspec.Struct):
    """One disturbed run: what was done, and what came of it. Times in seconds."""

    seed: int
    model: str
    transport: str
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


class DisturbedReply:
    """A generation in a session of its own, and when its tokens came."""

    def __init__(self, model: RemoteModel, prompt: str, seed: int | None) -> None:
        self.key = (prompt, seed)
        self.params = SamplingParams(
            max_tokens=REPLY_TOKENS, ignore_eos=True, seed=seed, temperature=0.0 if seed is None else 1.0
        )
        self.result = GrowingReply(model.tokenizer.encode(prompt), self.params)
        self.session: Session | None = None
        self.times: list[float] = []
        self._model = model

    async def run(self) -> None:
        """All of it."""
        model = self._model
        options = SessionOptions(max_tokens=len(self.result.prompt_ids) + REPLY_TOKENS, prefill_chunk_rows=8)
        async with model.client.session(model.spec, options=options) as session:
            self.session = session
            async for _ in SessionDecoder(model, session).generate(self.result):
                self.times.append(time.monotonic())

    def expected_rows(self, name: str) -> int:
        """What a server computes for this session when each opening of it there costs every row once."""
        if self.session is None:
            return 0
        return self.session.position * sum(heal.found.count(name) for heal in self.session.failovers)

    @property
    def pause_s(self) -> float:
        """The longest gap between two pieces of text."""
        return max((after - before for before, after in zip(self.times, self.times[1:], strict=False)), default=0.0)


Expected = dict[tuple[str, int | None], list[int]]


def make_tiny(folder: Path, max_positions: int = 512) -> None:
    """A random Llama of six blocks with a byte tokenizer."""
    from tests.support.tiny_models import tiny_llama, tiny_tokenizer

    folder.mkdir()
    tiny_llama(folder, num_hidden_layers=6, vocab_size=258, max_position_embeddings=max_positions)
    tiny_tokenizer(folder, vocab_size=258)


@contextlib.asynccontextmanager
async def scene_of(model: str, transport: str | None = "tls") -> AsyncIterator[FaultScenario]:
    """A swarm of three spans with spares, and a client, over one transport or (None) all that there are."""
    from shoal.local_cluster import divide, num_blocks

    spans = divide(num_blocks(model), 3) * SERVERS_PER_SPAN
    faults = Faults()
    async with ServerCluster(model, spans, transport, memory_bytes=1 << 30) as troupe:
        tickets = [actor.ticket for actor in troupe.live]
        async with AsyncClient(tickets, only=transport, wrap=faults.wrap) as client:
            async with await open_model(client, model) as remote:
                scene = FaultScenario(troupe, client, remote, faults)
                try:
                    yield scene
                finally:
                    await scene.close()


async def perform(
    model: str,
    seeds: range,
    progress: Callable[[Run], None] = lambda run: None,
    kinds: Sequence[str] = KINDS,
    transport: str | None = "tls",
) -> list[Run]:
    """One run for each seed; the seed says what happens when, the kind of damage goes round."""
    runs: list[Run] = []
    async with scene_of(model, transport) as scene:
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
            reply = DisturbedReply(model, prompt, seed)
            await reply.run()
            expected[reply.key] = reply.result.token_ids
    return expected


def _setting(scene: FaultScenario) -> tuple[str, str]:
    """The model's name, and what connects everybody."""
    return Path(scene.model.spec.name).stem, scene.troupe.transport or RACED


async def _disturbed(scene: FaultScenario, expected: Expected, seed: int, kind: str) -> Run:
    rng = random.Random(seed)
    sessions = rng.randint(1, MAX_SESSIONS)
    at_token = rng.choice([0, *range(1, REPLY_TOKENS - 4)])
    one = Run(seed, *_setting(scene), kind, at_token, sessions)
    replies = [DisturbedReply(scene.model, rng.choice(PROMPTS), rng.choice(SEEDS)) for _ in range(sessions)]
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


async def _client_killed(scene: FaultScenario, expected: Expected, seed: int, kind: str) -> Run:
    rng = random.Random(seed)
    reply = DisturbedReply(scene.model, rng.choice(PROMPTS), rng.choice(SEEDS))
    one = Run(seed, *_setting(scene), kind, rng.randrange(REPLY_TOKENS - 12), 1)
    sampling = {name: value for name, value in msgspec.structs.asdict(reply.params).items() if name != "stop"}
    try:
        async with asyncio.timeout(RUN_S):
            tokens, one.pause_s = await killed_and_resumed(scene, reply.key[0], sampling, one.at_token)
        one.identical = tokens == expected[reply.key]
    except (ShoalError, TimeoutError) as error:
        one.error = f"{type(error).__name__}: {error}"
    return one


def _repeated(after: dict[str, int], before: dict[str, int], replies: list[DisturbedReply]) -> int:
    """Rows that servers computed beyond one for each position of each session that was opened there."""
    return sum(
        max(0, after[name] - before[name] - sum(reply.expected_rows(name) for reply in replies))
        for name in after.keys() & before.keys()
    )


def _measure(one: Run, replies: list[DisturbedReply], struck_at: float) -> None:
    one.pause_s = max(reply.pause_s for reply in replies)
    failovers = [heal for reply in replies if reply.session for heal in reply.session.failovers[1:]]
    one.replayed_rows = sum(heal.replayed_rows for heal in failovers)
    found = [heal.began_at - struck_at for heal in failovers if heal.lost and heal.began_at >= struck_at]
    one.detection_s = min(found, default=None)
