"""`python -m bench attacks`: a liar of each kind beside an honest server, and what it costs an honest client.

Server, liar and client are processes of their own, so that each one's memory is seen.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
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

PROMPT = "The sea is large and the fish are many."
REPLY_TOKENS = 16
HANGS_S = 60.0
"""A reply that takes longer is one that hangs."""

LIE_S = 5.0
"""What a lie may cost."""


class Mode(msgspec.Struct):
    """What one lie did."""

    seconds: float = 0.0
    rss_mb: dict[str, float] = {}
    crashed: bool = False
    hung: bool = False
    wrong: bool = False
    within: bool = False
    told: str = ""


def run(only: str | None = None) -> dict[str, Any]:
    """Every mode once (or those whose names have `only` in them), and an undisturbed reply before each."""
    return asyncio.run(_run(only))


async def _run(only: str | None) -> dict[str, Any]:
    from tests.attacks.hostile_server import HOP_MODES

    began, done = time.monotonic(), dict[str, Mode]()
    with tempfile.TemporaryDirectory() as folder:
        tiny = Path(folder) / "tiny"
        make_tiny(tiny)
        for name, (lie, place) in HOP_MODES.items():
            if only is None or only in name:
                done[name] = await _mode(tiny, lie, place)
                _show(name, done[name])
    seconds = [mode.seconds for mode in done.values()]
    return {
        "name": "attacks",
        "modes": len(done),
        "crashes": sum(mode.crashed for mode in done.values()),
        "hangs": sum(mode.hung for mode in done.values()),
        "wrong": sum(mode.wrong for mode in done.values()),
        "late": sum(not mode.within for mode in done.values()),
        "seconds": {"median": statistics.median(seconds), "max": max(seconds)} if seconds else {},
        "by_mode": {name: msgspec.to_builtins(mode) for name, mode in done.items()},
        "total_s": time.monotonic() - began,
        "hardware": hardware(),
        "commit": commit(),
    }


def _show(name: str, mode: Mode) -> None:
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


class _Process:
    """A program that says one line when it is ready, and ends with its input."""

    def __init__(self, process: asyncio.subprocess.Process, said: dict[str, Any]) -> None:
        self.process = process
        self.said = said

    @property
    def rss_mb(self) -> float:
        """What it holds now; 0 when it has ended."""
        try:
            pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        except (OSError, IndexError, ValueError):
            return 0.0
        return pages * resource.getpagesize() / 2**20


async def _started(*arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "bench.attack_process", *arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )


@contextlib.asynccontextmanager
async def _server(model: Path, span: str, lie: str, peers: list[str]) -> AsyncIterator[_Process]:
    """A server in a process of its own that is killed in the end."""
    process = await _started("server", json.dumps([str(model), span, lie, peers]))
    try:
        assert process.stdout is not None
        async with asyncio.timeout(HANGS_S):
            yield _Process(process, json.loads(await process.stdout.readline()))
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


async def _client(model: Path, tickets: list[str], distrusted: list[str]) -> dict[str, Any]:
    """A reply in a process of its own: tokens, seconds, memory, or what went wrong."""
    process = await _started("client", json.dumps([str(model), tickets, distrusted, PROMPT, REPLY_TOKENS]))
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
