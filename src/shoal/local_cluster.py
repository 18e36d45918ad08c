"""Servers in processes of their own on this machine's loopback, gone when this process is."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from shoal.errors import ShoalError
from shoal.types import Span

STOP_S = 10.0
MEMORY = "2GB"


class LocalServer:
    """One `shoal serve` process. Its standard input is a pipe: when this process dies, however, the server leaves.

    `temporary`: with a fresh key and a free port; otherwise it has those that it had last.
    """

    def __init__(self, model: str, *options: str, env: dict[str, str] | None = None, temporary: bool = True) -> None:
        command = [
            sys.executable,
            "-m",
            "shoal.cli.main",
            "serve",
            model,
            "--json",
            "--watch-stdin",
            *(["--temporary"] if temporary else []),
            *options,
        ]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the parent, who then closes the pipes
            env={**os.environ, **(env or {})},
        )
        self.ready: dict[str, Any] = {}

    def wait_ready(self) -> dict[str, Any]:
        """Its first words when it serves: ticket, peer, span. Raises ShoalError with what it said when it could not."""
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        for line in self.process.stdout:
            event: dict[str, Any] = json.loads(line)
            if event["event"] == "ready":
                self.ready = event
                return event
        raise ShoalError(f"a server did not start: {self.process.stderr.read().decode(errors='replace').strip()}")

    def kill(self) -> None:
        """End it at once, as a power cut does."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """Ask it to leave, and insist after a while. Stopping twice is harmless."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()


class LocalCluster:
    """A model's blocks divided evenly between servers. Use with `with`; `ticket` reaches the first.

    `spares`: that many of the spans, from the middle one on, have a second server. `options`: more of `shoal serve`'s.
    """

    def __init__(
        self,
        model: str,
        count: int,
        threads: int = 1,
        transport: str | None = None,
        spares: int = 0,
        options: Sequence[str] = (),
    ) -> None:
        self._model = model
        self._count = count
        self._spares = spares
        self._options = ["--threads", str(threads), "--memory", MEMORY]
        self._options += ["--transport", transport] if transport else []
        self._options += options
        self.servers: list[LocalServer] = []
        self.ticket = ""

    def __enter__(self) -> LocalCluster:
        try:
            spans = divide(num_blocks(self._model), self._count)
            middle = (self._count - 1) // 2
            doubled = [spans[(middle + index) % self._count] for index in range(self._spares)]
            for index, span in enumerate([*spans, *doubled]):
                # The first one's ticket is all that the others know; they load at the same time.
                joining = ["--peers", self.ticket] if self.ticket else []
                options = ["--blocks", str(span), "--name", _name(index, self._count), *self._options, *joining]
                self.servers.append(LocalServer(self._model, *options))
                if index == 0:
                    self.ticket = self.servers[0].wait_ready()["ticket"]
            for server in self.servers[1:]:
                server.wait_ready()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def of(self, peer: str) -> LocalServer:
        """The server with this node id."""
        return next(server for server in self.servers if server.ready.get("peer") == peer)

    def close(self) -> None:
        """Stop all servers at once. Closing twice is harmless."""
        for server in self.servers:
            assert server.process.stdin is not None
            with contextlib.suppress(OSError):
                server.process.stdin.close()
        for server in self.servers:
            server.stop()


def _name(index: int, count: int) -> str:
    return f"server {index + 1}" if index < count else f"spare {index - count + 1}"


def num_blocks(model: str) -> int:
    """How many blocks a checkpoint has."""
    from shoal.model.families import model_config
    from shoal.model.weights.model_source import open_checkpoint

    return model_config(open_checkpoint(model).config).num_blocks


def divide(blocks: int, count: int) -> list[Span]:
    """0:blocks in `count` spans, as even as possible."""
    bounds = [index * blocks // count for index in range(count + 1)]
    return [Span(start, stop) for start, stop in itertools.pairwise(bounds)]
