"""Real servers in processes of their own, with spares, that fail when told to."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from typing import Any

from shoal.errors import ShoalError
from shoal.types import PeerId, Span

ANSWER_S = 60.0
"""How long a process may take to start or to obey."""


class ServerProcess:
    """One `faulty_server` process."""

    def __init__(self, span: Span, name: str, process: asyncio.subprocess.Process) -> None:
        self.span = span
        self.name = name
        self.ticket = ""
        self.peer = PeerId("")
        self._process = process

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it runs (or is stopped)."""
        return self._process.returncode is None

    async def answer(self) -> dict[str, Any]:
        """Its next line; raises ShoalError when it has ended."""
        assert self._process.stdout is not None
        async with asyncio.timeout(ANSWER_S):
            line = await self._process.stdout.readline()
        if not line:
            raise ShoalError(f"the server of blocks {self.span} has ended")
        answer: dict[str, Any] = json.loads(line)
        return answer

    async def order(self, do: str, **more: Any) -> dict[str, Any]:
        """Have it do something."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **more}).encode() + b"\n")
        return await self.answer()

    def send_signal(self, number: signal.Signals) -> None:
        """Kill, stop or continue it."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    async def end(self) -> None:
        """Kill it, whatever its state. Ending twice is harmless."""
        if self.alive:
            self.send_signal(signal.SIGKILL)
        await self._process.wait()


class ServerCluster:
    """Servers for each of some spans. Use with `async with`; `enlist` starts one more. `transport` None: all there are."""

    def __init__(self, model: str, spans: list[Span], transport: str | None = None, **options: Any) -> None:
        self.transport = transport
        self.actors: list[ServerProcess] = []
        self._enlisted = 0
        self._model = model
        self._spans = spans
        self._options = options

    async def __aenter__(self) -> ServerCluster:
        try:
            await self.enlist(self._spans[0])
            await asyncio.gather(*(self.enlist(span) for span in self._spans[1:]))
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def live(self) -> list[ServerProcess]:
        """Those that run and serve."""
        return [actor for actor in self.actors if actor.alive and actor.ticket]

    def of(self, peer: str) -> ServerProcess:
        """The server with this node id."""
        return next(actor for actor in self.actors if actor.peer == peer)

    async def enlist(self, span: Span) -> ServerProcess:
        """Start a server and wait until it serves."""
        self._enlisted += 1
        name = f"{span}#{self._enlisted}"
        options = {
            "model": self._model,
            "blocks": str(span),
            "name": name,
            "peers": [actor.ticket for actor in self.live][:3],
            "threads": 1,
            "transport": self.transport,
            **self._options,
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.support.faulty_server",
            json.dumps(options),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        actor = ServerProcess(span, name, process)
        self.actors.append(actor)
        ready = await actor.answer()
        actor.peer, actor.ticket = PeerId(ready["peer"]), ready["ticket"]
        return actor

    async def close(self) -> None:
        """End all of them."""
        await asyncio.gather(*(actor.end() for actor in self.actors))
