"""`python -m bench moves`: servers leave and move to other blocks under load; no session may be dropped, no block uncovered."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec

from bench.fault_runs import PROMPTS, SEEDS, DisturbedReply, Expected, make_tiny, undisturbed
from bench.report import commit, hardware
from shoal.client.client import AsyncClient
from shoal.client.remote_model import RemoteModel, open_model
from shoal.errors import ShoalError
from shoal.server.serve_options import ServeOptions
from shoal.server.server import Server
from shoal.swarm.placement.rebalancer import LOOK_S
from shoal.types import Span
from tests.support.virtual_clock import FastClock

NUM_BLOCKS = 6
SERVERS = 5
MOST_BLOCKS = 3
CLIENTS = 6
SPEED = 30.0
"""Servers judge moves so many times as often as otherwise, and announce them for so many times as short."""

WATCH_S = 0.001
SETTLE_S = 8.0
"""How long moves are waited for after somebody has come or left."""


class MoveCounts(msgspec.Struct):
    """What happened so far."""

    drains: int = 0
    moves: int = 0
    at_once: int = 0
    at_once_moved: int = 0
    replies: int = 0
    identical: int = 0
    dropped: int = 0
    handed_over: int = 0
    replayed_rows: int = 0
    uncovered: int = 0
    looked: int = 0
    problems: dict[str, int] = {}

    def note(self, problem: str) -> None:
        """Count what went wrong, and say it at once."""
        print(problem, file=sys.stderr, flush=True)
        self.problems[problem] = self.problems.get(problem, 0) + 1

    @property
    def runs(self) -> int:
        """Drains and moves together."""
        return self.drains + self.moves


class MoveSetting:
    """Servers in this process, on real sockets, that choose their blocks and move."""

    def __init__(self, model: Path, stack: contextlib.AsyncExitStack) -> None:
        self.servers: list[Server] = []
        self.gone_moves = 0
        self._model = model
        self._stack = stack
        self._joined = 0

    async def join(self) -> Server:
        """One more server, with memory for half of the model."""
        config = ServeOptions(
            model=str(self._model),
            num_blocks=MOST_BLOCKS,
            peers=tuple(server.ticket for server in self.servers),
            name=f"server {self._joined}",
            memory_bytes=128 << 20,
            transport="tls",
        )
        self._joined += 1
        server = Server(config, move_clock=FastClock(SPEED))
        self.servers.append(await self._stack.enter_async_context(server))
        return server

    @property
    def moves(self) -> int:
        """That were carried out."""
        return self.gone_moves + sum(
            server.rebalancing.moves for server in self.servers if server.rebalancing is not None
        )

    def holders(self, block: int) -> list[Server]:
        """Servers that serve a block and take sessions."""
        return [one for one in self.servers if one.serving and block in one.record.span]

    def uncovered(self) -> list[int]:
        """Blocks that nobody serves."""
        return [block for block in range(NUM_BLOCKS) if not self.holders(block)]

    def dispensable(self) -> list[Server]:
        """Servers that nobody misses: each of their blocks has another server, which has not announced that it leaves."""
        return [
            server
            for server in self.servers
            if server.serving
            and all(
                any(other is not server and other.record.next_span is None for other in self.holders(block))
                for block in server.record.span.blocks()
            )
        ]

    async def drain(self, server: Server) -> int:
        """Have one leave; returns how many sessions it dropped."""
        left = await server.drain(30.0)
        await server.__aexit__(None, None, None)
        self.servers.remove(server)
        self.gone_moves += server.rebalancing.moves if server.rebalancing is not None else 0
        return left


def run(runs: int, seed: int = 1) -> dict[str, Any]:
    """Until there were so many drains and moves together."""
    return asyncio.run(_run(runs, seed))


async def _run(runs: int, seed: int) -> dict[str, Any]:
    began, rng, tally = time.monotonic(), random.Random(seed), MoveCounts()
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "tiny"
        make_tiny(model)
        os.environ["SHOAL_MODELS"] = folder
        async with _stage(model) as (stage, remote):
            expected = await undisturbed(remote)
            works = [_load(remote, expected, tally, random.Random(rng.random())) for _ in range(CLIENTS)]
            tasks = [asyncio.create_task(work) for work in (*works, _watch(stage, tally))]
            try:
                while tally.runs < runs:
                    await _upset(stage, tally, rng)
                    _show(stage, tally)
            finally:
                for task in tasks:
                    task.cancel()
                results = await asyncio.gather(*tasks, return_exceptions=True)
    for one in results:
        if not isinstance(one, asyncio.CancelledError):
            tally.note(repr(one))
    return {
        "name": "moves",
        "runs": tally.runs,
        **msgspec.to_builtins(tally),
        "total_s": time.monotonic() - began,
        "hardware": hardware(),
        "commit": commit(),
    }


def _show(stage: MoveSetting, tally: MoveCounts) -> None:
    spans = " ".join(str(server.record.span) for server in stage.servers)
    counts = f"{tally.drains} drains, {tally.moves} moves, {tally.identical}/{tally.replies} replies the same"
    print(f"{counts}, {tally.uncovered} uncovered; now {spans}", file=sys.stderr, flush=True)


@contextlib.asynccontextmanager
async def _stage(model: Path) -> AsyncIterator[tuple[MoveSetting, RemoteModel]]:
    async with contextlib.AsyncExitStack() as stack:
        stage = MoveSetting(model, stack)
        for _ in range(SERVERS):
            await stage.join()
        client = await stack.enter_async_context(AsyncClient([one.ticket for one in stage.servers], only="tls"))
        yield stage, await stack.enter_async_context(await open_model(client, str(model)))


async def _upset(stage: MoveSetting, tally: MoveCounts, rng: random.Random) -> None:
    """A server leaves or comes, and the others settle."""
    leavers = stage.dispensable()
    if len(stage.servers) >= SERVERS and leavers:
        tally.dropped += await stage.drain(rng.choice(leavers))
        tally.drains += 1
    else:
        await stage.join()
    await _settle(stage, tally, rng)


async def _settle(stage: MoveSetting, tally: MoveCounts, rng: random.Random) -> None:
    """Until nobody has announced a move for two rounds of judging, or for SETTLE_S."""
    quiet_since = began = time.monotonic()
    while (now := time.monotonic()) - quiet_since < 1.3 * LOOK_S / SPEED and now - began < SETTLE_S:
        planning = [one for one in stage.servers if _announced(one)]
        if planning:
            quiet_since = now
            if len(planning) == 1:
                await _rival(stage, planning[0], tally)
        tally.moves = stage.moves
        await asyncio.sleep(0.01)


async def _rival(stage: MoveSetting, mover: Server, tally: MoveCounts) -> None:
    """If only one other server holds a block of one that is about to move, that one announces a move too."""
    for block in mover.record.span.blocks():
        others = [one for one in stage.holders(block) if one is not mover]
        if len(others) == 1 and others[0].rebalancing is not None and not _announced(others[0]):
            before = stage.moves
            goal = Span(0, MOST_BLOCKS) if others[0].record.span.start else Span(NUM_BLOCKS - MOST_BLOCKS, NUM_BLOCKS)
            await others[0].rebalancing.announce(goal)
            tally.at_once += 1
            while _announced(mover) or _announced(others[0]):  # noqa: ASYNC110
                await asyncio.sleep(0.01)  # announcements set no event
            tally.at_once_moved += stage.moves > before
            return


def _announced(server: Server) -> bool:
    """Whether it has announced a move that it has not ended."""
    return server.rebalancing is not None and server.rebalancing.rebalancer.announced is not None


async def _watch(stage: MoveSetting, tally: MoveCounts) -> None:
    """Look whether every block is served; a gap counts once."""
    gap: list[int] = []
    while True:
        now = stage.uncovered()
        if now and not gap:
            tally.uncovered += 1
            tally.note(f"blocks {now} are not served")
        gap = now
        tally.looked += 1
        await asyncio.sleep(WATCH_S)


async def _load(remote: RemoteModel, expected: Expected, tally: MoveCounts, rng: random.Random) -> None:
    """One reply after the other."""
    while True:
        reply = DisturbedReply(remote, rng.choice(PROMPTS), rng.choice(SEEDS))
        try:
            await reply.run()
        except ShoalError as error:
            tally.note(f"a reply failed: {error}")
        same = reply.result.token_ids == expected[reply.key]
        tally.replies += 1
        tally.identical += same
        if not same and reply.session is not None:
            tally.note(f"{len(reply.result.token_ids)} tokens, {reply.session.failovers}")
        if reply.session is not None:
            tally.handed_over += any(not heal.lost for heal in reply.session.failovers[1:])
            tally.replayed_rows += sum(heal.replayed_rows for heal in reply.session.failovers[1:])
