"""`python -m bench attacks`: a liar of each kind beside an honest server, floods of one server, and what they cost others.

Server, liar and client are processes of their own, so that each one's memory is seen.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec

from bench.fault_runs import make_tiny
from bench.report import commit, hardware
from bench.rss import rss_mb

PROMPT = "The sea is large and the fish are many."
REPLY_TOKENS = 16
HANGS_S = 60.0
"""A reply that takes longer is one that hangs."""

LIE_S = 5.0
"""What a lie may cost."""

FLOOD_TIMES = 2.0
"""How many times as long a reply may take beside a flood."""

FLOODED_TOKENS, FLOODED_POSITIONS = 1_600, 2_048
"""A reply of more than a second: opening counts beside it as it does for people."""

FLOODED_REPLIES = 3

OPENS_S = 5.0
"""How long a newcomer may take to a session beside a flood."""

MEMORY_MB = 128
ON_TOP_MB = 300
"""What interpreter and libraries may have beside a server's memory."""

GREEDY_HOSTS, GREEDY_KEYS = 50, 3
GREEDY_TOKENS = 240
"""With the prompt they need less of the cache than an equal share: such a client always gets a session."""
FAIR = 0.5
"""What part of an equal share a client beside greedy ones must have."""


class Mode(msgspec.Struct):
    """What one lie did."""

    seconds: float = 0.0
    rss_mb: dict[str, float] = {}
    crashed: bool = False
    hung: bool = False
    wrong: bool = False
    within: bool = False
    told: str = ""


class Flood(msgspec.Struct):
    """What one flood did to a client that comes while it lasts; times are medians, `opened_s` the worst."""

    seconds: float = 0.0
    usual_s: float = 0.0
    ratio: float = 0.0
    opened_s: float = 0.0
    server_mb: float = 0.0
    crashed: bool = False
    hung: bool = False
    wrong: bool = False
    within: bool = False
    told: str = ""


class Greed(msgspec.Struct):
    """What a client gets beside greedy ones: of an equal share of all tokens per second, and after how long."""

    opened_s: float
    tokens_per_s: float
    all_tokens_per_s: float
    clients: int
    of_equal_share: float
    alone_tokens_per_s: float
    server_mb: float
    within: bool
    told: str = ""


def run(only: str | None = None) -> dict[str, Any]:
    """Every mode once (or those whose names have `only` in them), and an undisturbed reply before each."""
    return asyncio.run(_run(only))


async def _run(only: str | None) -> dict[str, Any]:
    from tests.attacks.hostile_client import LIES as FLOODS
    from tests.attacks.hostile_server import HOP_MODES

    began, done, floods, greed = time.monotonic(), dict[str, Mode](), dict[str, Flood](), dict[str, Greed]()
    with tempfile.TemporaryDirectory() as folder:
        tiny = Path(folder) / "tiny"
        make_tiny(tiny, FLOODED_POSITIONS)
        for name, (lie, place) in HOP_MODES.items():
            if only is None or only in name:
                done[name] = await _mode(tiny, lie, place)
                _show(name, done[name])
        for name in FLOODS:
            if only is None or only in f"flood {name}":
                floods[name] = await _flood(tiny, name)
                _show(f"flood: {name}", floods[name])
        for greedy in GREEDY:
            if only is None or only in f"greed {greedy}":
                greed[greedy] = await _greed(tiny, greedy)
                print(f"greed: {greedy:43} {greed[greedy].of_equal_share:.2f} of a share", file=sys.stderr, flush=True)
    seconds, modes = [mode.seconds for mode in done.values()], list[Mode | Flood]([*done.values(), *floods.values()])
    return {
        "name": "attacks",
        "modes": len(modes) + len(greed),
        "crashes": sum(mode.crashed for mode in modes),
        "hangs": sum(mode.hung for mode in modes),
        "wrong": sum(mode.wrong for mode in modes),
        "late": sum(not mode.within for mode in [*modes, *greed.values()]),
        "seconds": {"median": statistics.median(seconds), "max": max(seconds)} if seconds else {},
        "by_mode": {name: msgspec.to_builtins(mode) for name, mode in done.items()},
        "floods": {name: msgspec.to_builtins(flood) for name, flood in floods.items()},
        "greed": {name: msgspec.to_builtins(one) for name, one in greed.items()},
        "total_s": time.monotonic() - began,
        "hardware": hardware(),
        "commit": commit(),
    }


def _show(name: str, mode: Mode | Flood) -> None:
    words = {"crashed": mode.crashed, "hung": mode.hung, "WRONG": mode.wrong, "late": not mode.within}
    verdict = ", ".join(word for word, so in words.items() if so) or "right"
    print(f"{name:50} {verdict}, {mode.seconds:.2f} s", file=sys.stderr, flush=True)


async def _mode(model: Path, lie: str, place: str) -> Mode:
    """A swarm with one liar, and a client that asks it first, compared with one that asks the others only."""
    spans = ["0:6"] if place == "alone" else ["0:3", "3:6"]
    lied = {"alone": "0:6", "first": "0:3", "last": "3:6"}[place]
    mode = Mode()
    async with contextlib.AsyncExitStack() as stack:
        honest: list[_Process] = []
        for span in spans:
            peers = [honest[0].said["ticket"]] if honest else []
            honest.append(await stack.enter_async_context(_server(model, span, "", peers)))
        liar = await stack.enter_async_context(_server(model, lied, lie, [honest[0].said["ticket"]]))
        tickets = [one.said["ticket"] for one in (*honest, liar)]
        distrusted = [one.said["peer"] for one in (*honest, liar)]
        usual = await _client(model, tickets, distrusted[-1:])
        disturbed = await _client(model, tickets, distrusted[:-1])
        mode.hung, mode.told = disturbed.get("hung", False), disturbed.get("error", "")
        mode.crashed = disturbed.get("crashed", False) or any(one.process.returncode is not None for one in honest)
        mode.wrong = not mode.hung and not mode.crashed and disturbed.get("tokens") != usual.get("tokens")
        mode.seconds = disturbed.get("seconds", HANGS_S) - usual.get("seconds", 0.0)
        mode.within = mode.seconds <= LIE_S
        mode.rss_mb = {
            "client": disturbed.get("rss_mb", 0.0),
            "server": max(one.rss_mb for one in honest),
        }
    return mode


async def _flood(model: Path, name: str) -> Flood:
    """A server alone, and a client that comes without and with a flood."""
    flood = Flood()
    async with _server(model, "0:6", "", []) as server:
        ticket = server.said["ticket"]
        usual = await _client(model, [ticket], [], FLOODED_TOKENS, FLOODED_REPLIES)
        async with _party("flood", [ticket, name]):
            disturbed = await _client(model, [ticket], [], FLOODED_TOKENS, FLOODED_REPLIES)
            flood.server_mb = server.rss_mb
        again = await _client(model, [ticket], [], FLOODED_TOKENS, FLOODED_REPLIES)
        flood.crashed = disturbed.get("crashed", False) or server.process.returncode is not None
    flood.hung, flood.told = disturbed.get("hung", False), disturbed.get("error", "")
    flood.wrong = not flood.hung and not flood.crashed and disturbed.get("tokens") != usual.get("tokens")
    flood.seconds = disturbed.get("seconds", HANGS_S)
    flood.usual_s = statistics.mean(
        [usual["seconds"], again["seconds"]]
    )  # before and after: the machine has other work
    flood.opened_s, flood.ratio = disturbed.get("opened_s", HANGS_S), flood.seconds / flood.usual_s
    flood.within = flood.ratio <= FLOOD_TIMES and flood.opened_s <= OPENS_S and flood.server_mb <= MEMORY_MB + ON_TOP_MB
    return flood


GREEDY = {"that decode": 1, "that prefill": 64}
"""Rows that each of their sessions sends at once."""


async def _greed(model: Path, greedy: str) -> Greed:
    """A server whose sessions greedy clients have taken, each from an address of its own, and a client that comes then."""
    async with _server(model, "0:6", "", []) as server:
        ticket = server.said["ticket"]
        alone = await _client(model, [ticket], [], GREEDY_TOKENS)
        async with _party("greedy", [ticket, GREEDY_HOSTS, GREEDY_KEYS, GREEDY[greedy]]) as crowd:
            honest = await _client(model, [ticket], [], GREEDY_TOKENS)
            took_mb, counted = server.rss_mb, await crowd.end()
    if "error" in honest or honest.get("hung") or honest.get("crashed"):
        return Greed(
            HANGS_S, 0.0, 0.0, GREEDY_HOSTS + 1, 0.0, 0.0, took_mb, False, honest.get("error", "it hung or crashed")
        )
    began_at, ended_at = honest["decoded_at"]
    rows = [(at, rows) for at, rows in counted["rows"] if began_at <= at <= ended_at]
    mine = (GREEDY_TOKENS - 1) / (ended_at - began_at)
    everybody = mine + (rows[-1][1] - rows[0][1]) / (rows[-1][0] - rows[0][0])
    share = mine / (everybody / (GREEDY_HOSTS + 1))
    good = share >= FAIR and honest["opened_s"] <= OPENS_S and took_mb <= MEMORY_MB + ON_TOP_MB
    before = (GREEDY_TOKENS - 1) / (alone["decoded_at"][1] - alone["decoded_at"][0])
    return Greed(honest["opened_s"], mine, everybody, GREEDY_HOSTS + 1, share, before, took_mb, good)


class _Process:
    """A program that says one line when it is ready, and ends with its input."""

    def __init__(self, process: asyncio.subprocess.Process, said: dict[str, Any]) -> None:
        self.process = process
        self.said = said

    @property
    def rss_mb(self) -> float:
        """What it holds now; 0 when it has ended."""
        return rss_mb(self.process.pid)

    async def end(self) -> dict[str, Any]:
        """End its input; what it says then."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        answer: dict[str, Any] = json.loads(await self.process.stdout.readline())
        return answer


async def _started(*arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "bench.attack_process", *arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )


def _server(model: Path, span: str, lie: str, peers: list[str]) -> contextlib.AbstractAsyncContextManager[_Process]:
    """A server in a process of its own."""
    return _party("server", [str(model), span, lie, peers, MEMORY_MB])


@contextlib.asynccontextmanager
async def _party(name: str, arguments: list[Any]) -> AsyncIterator[_Process]:
    """One of `attack_process.PARTIES` in a process of its own that is killed in the end."""
    process = await _started(name, json.dumps(arguments))
    try:
        assert process.stdout is not None
        async with asyncio.timeout(HANGS_S):
            said = json.loads(await process.stdout.readline())
        yield _Process(process, said)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


async def _client(
    model: Path, tickets: list[str], distrusted: list[str], tokens: int = REPLY_TOKENS, replies: int = 1
) -> dict[str, Any]:
    """Replies in a process of its own: tokens, seconds, memory, or what went wrong."""
    process = await _started("client", json.dumps([str(model), tickets, distrusted, PROMPT, tokens, replies]))
    try:
        async with asyncio.timeout(HANGS_S):
            out, _ = await process.communicate()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()
        return {"hung": True}
    if process.returncode != 0 or not out:
        return {"crashed": True, "error": f"exit code {process.returncode}"}
    answer: dict[str, Any] = json.loads(out.splitlines()[-1])
    return answer
