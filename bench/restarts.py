"""`python -m bench restarts`: all servers of a model are restarted, one after another, while four clients want replies.

Servers are `shoal serve` processes that keep their keys and ports. They are asked to leave as people ask, by Ctrl-C, or as
systems do, by SIGTERM.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from bench.fault_runs import PROMPTS, make_tiny
from bench.report import commit, hardware
from shoal.client.async_model import AsyncModel, connect_async
from shoal.errors import ShoalError
from shoal.local_cluster import LocalServer
from shoal.types import Span

LAYOUTS = {
    "thirds": (Span(0, 2), Span(2, 4), Span(4, 6)),
    "doubled": (Span(0, 3), Span(0, 3), Span(3, 6), Span(3, 6)),
    "whole": (Span(0, 6), Span(0, 6), Span(0, 6)),
}
"""Of six blocks: without another server for any of them, with one, and with two."""

SIGNALS = (signal.SIGINT, signal.SIGTERM)
CLIENTS = 4
REPLY_TOKENS = (16, 48, 96, 192)
"""Of each client's replies."""

LEAVES_S = 90.0
"""How long a server may take to leave: it gives its sessions a minute."""

HANGS_S = 120.0
"""A reply that takes longer is one that hangs."""


class Restarts(msgspec.Struct):
    """What came of the restarts of one layout. Times in seconds."""

    restarts: int = 0
    replies: int = 0
    failovers: int = 0
    wrong: int = 0
    errors: list[str] = []
    exit_codes: list[int] = []
    moved: int = 0
    leaving_s: float = 0.0
    slowest_reply_s: float = 0.0
    total_s: float = 0.0


def run(rounds: int, seed: int = 1) -> dict[str, Any]:
    """Each layout, each of its servers so often."""
    done = {name: asyncio.run(restarted(spans, rounds, seed)) for name, spans in LAYOUTS.items()}
    return {
        "name": "restarts",
        "restarts": sum(one.restarts for one in done.values()),
        "replies": sum(one.replies for one in done.values()),
        "errors": sum(len(one.errors) for one in done.values()),
        "wrong": sum(one.wrong for one in done.values()),
        "by_layout": {name: msgspec.to_builtins(one) for name, one in done.items()},
        "hardware": hardware(),
        "commit": commit(),
    }


async def restarted(spans: Sequence[Span], rounds: int, seed: int = 1) -> Restarts:
    """Servers of these spans are restarted one after another, so many times each."""
    began, found = time.monotonic(), Restarts()
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "tiny"
        make_tiny(model)
        servers = _Servers(str(model), Path(folder) / "home", spans)
        try:
            await servers.start()
            async with asyncio.TaskGroup() as tasks:
                crowd = _Crowd(str(model), servers.tickets, found)
                asking = [tasks.create_task(crowd.ask(number)) for number in range(CLIENTS)]
                try:
                    await crowd.all_replied(1)
                    for number, place in itertools.product(range(rounds), range(len(spans))):
                        await servers.restart(place, SIGNALS[(number + place + seed) % 2], found)
                        await crowd.all_replied(1)
                finally:
                    crowd.stop.set()
                    await asyncio.gather(*asking, return_exceptions=True)
        finally:
            await servers.close()
    found.total_s = time.monotonic() - began
    return found


class _Servers:
    """`shoal serve` processes, each at the port and with the key that it had before."""

    def __init__(self, model: str, home: Path, spans: Sequence[Span]) -> None:
        self._model = model
        self._home = home
        self._spans = spans
        self._running: dict[int, LocalServer] = {}
        self.tickets: list[str] = []

    async def start(self) -> None:
        """All of them: the others know the first one's ticket."""
        for place in range(len(self._spans)):
            self.tickets.append(await self._serve(place))

    async def _serve(self, place: int) -> str:
        """Start one and wait until it serves; returns its ticket."""
        peers = [part for ticket in self.tickets for part in ("--peers", ticket)]
        options = ["--blocks", str(self._spans[place]), "--identity", str(self._home / f"{place}.key"), "--name"]
        options += [f"server {place}", "--transport", "tls", "--threads", "1", "--memory", "256MB"]
        server = LocalServer(
            self._model,
            *options,
            *("--log-level", "warning", *peers),
            env={"SHOAL_HOME": str(self._home), "OMP_NUM_THREADS": "1"},
            temporary=False,
        )
        self._running[place] = server
        ready = await asyncio.to_thread(server.wait_ready)
        return str(ready["ticket"])

    async def restart(self, place: int, number: signal.Signals, found: Restarts) -> None:
        """Ask one to leave, wait until it has left, start it again."""
        server, began = self._running[place], time.monotonic()
        os.kill(server.process.pid, number)
        found.exit_codes.append(await asyncio.to_thread(server.process.wait, LEAVES_S))
        found.leaving_s = max(found.leaving_s, time.monotonic() - began)
        await asyncio.to_thread(server.stop)
        ticket = await self._serve(place)
        found.moved += ticket != self.tickets[place]
        found.restarts += 1

    async def close(self) -> None:
        """End all of them."""
        for server in self._running.values():
            if server.process.poll() is None:
                server.kill()
            await asyncio.to_thread(server.stop)


class _Crowd:
    """Clients that ask for the same replies again and again until `stop` is set."""

    def __init__(self, model: str, tickets: Sequence[str], found: Restarts) -> None:
        self.stop = asyncio.Event()
        self._model = model
        self._tickets = list(tickets)
        self._found = found
        self._replies = [0] * CLIENTS
        self._progress = asyncio.Condition()

    async def all_replied(self, times: int) -> None:
        """Wait until each client has had so many more replies, or errors, that it began after this; TimeoutError."""
        wanted = [replies + times + 1 for replies in self._replies]
        async with asyncio.timeout(2 * HANGS_S), self._progress:
            await self._progress.wait_for(lambda: all(map(int.__ge__, self._replies, wanted)))

    async def ask(self, number: int) -> None:
        """One client."""
        async with await connect_async(self._model, peers=self._tickets, transport="tls") as model:
            expected: tuple[int, ...] | None = None
            while not self.stop.is_set():
                expected = await self._reply(model, number, expected) or expected
                async with self._progress:
                    self._replies[number] += 1
                    self._progress.notify_all()

    async def _reply(self, model: AsyncModel, number: int, expected: tuple[int, ...] | None) -> tuple[int, ...] | None:
        """One reply, which must be the first one again; returns its tokens, None after an error."""
        prompt, began = PROMPTS[number % len(PROMPTS)], time.monotonic()
        try:
            async with asyncio.timeout(HANGS_S):
                reply = await model.generate(prompt, max_tokens=REPLY_TOKENS[number], ignore_eos=True)
        except (ShoalError, TimeoutError) as error:
            self._found.errors.append(f"client {number}: {type(error).__name__}: {error}")
            return None
        self._found.replies += 1
        self._found.failovers += len(reply.failovers)
        self._found.wrong += expected is not None and reply.token_ids != expected
        self._found.slowest_reply_s = max(self._found.slowest_reply_s, time.monotonic() - began)
        return reply.token_ids
