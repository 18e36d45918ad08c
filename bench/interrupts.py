"""`python -m bench interrupts`: Ctrl-C at random moments of `shoal generate`, `shoal chat` and a stream in Python.

Each client runs in a terminal of its own, and Ctrl-C is typed there: from the first line of its `main` on, imports included,
up to the end of an undisturbed run.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import pty
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from bench.fault_runs import make_tiny
from bench.report import commit, hardware
from shoal.client.client import AsyncClient
from shoal.local_cluster import LocalCluster
from tests.faults.interruptible import RETURNED
from tests.support.screen import Screen

KINDS = ("generate", "chat", "stream")
TEMPLATE = "{% for message in messages %}{{ message.content }}\n{% endfor %}"
PROMPT = b"\n> "
CTRL_C, CTRL_D = b"\x03", b"\x04"
TOKENS = 60

CODES = {"generate": {130}, "chat": {0, 130}, "stream": {130}}
"""How each may end: a chat goes on after a reply that was interrupted, and ends with its input."""

ENDED_ALREADY = {0, -signal.SIGINT}
"""How one may end whose `main` has returned: as it would have, or, while the interpreter ends, by the signal itself, which
shells show as 130."""

LEFT_S = 2.0
"""So long after a client has ended, no server has a session of it."""

HANGS_S = 20.0
"""A client that has not ended so long after Ctrl-C is one that hangs."""

GOES_ON_S = 0.6
"""A chat that has not ended after so long goes on, and is told that there is no more input."""

SAYS = re.compile(r"Traceback|Exception ignored|\berror\b|Error\b|never awaited|was destroyed")
STATUS = re.compile(r"starting|connecting|opening|reading|waiting|finishing|asking|looking|choosing|putting")
"""What the status line says."""


class Moment(msgspec.Struct):
    """One client, interrupted so many seconds after the first line of its `main`."""

    kind: str
    at_s: float
    code: int | None = None
    reaction_s: float = 0.0
    finished: bool = False
    left_behind: int = 0
    problems: list[str] = []
    shown: str = ""


def run(count: int, seed: int = 1) -> dict[str, Any]:
    """So many moments of each kind."""
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "talkative"
        make_tiny(model, max_positions=4096)
        (model / "chat_template.jinja").write_text(TEMPLATE)
        with LocalCluster(str(model), 2, transport="tls") as cluster:
            moments = asyncio.run(_moments(model, cluster.ticket, count, random.Random(seed)))
    return {
        "name": "interrupts",
        "seed": seed,
        "moments": len(moments),
        "clean": sum(not one.problems for one in moments),
        "left_behind": sum(one.left_behind for one in moments),
        "by_kind": {kind: _summary([one for one in moments if one.kind == kind]) for kind in KINDS},
        "unclean": [msgspec.to_builtins(one) for one in moments if one.problems],
        "hardware": hardware(),
        "commit": commit(),
    }


def _summary(moments: Sequence[Moment]) -> dict[str, Any]:
    seconds = [one.reaction_s for one in moments if not one.finished] or [0.0]
    return {
        "moments": len(moments),
        "clean": sum(not one.problems for one in moments),
        "after_the_end": sum(one.finished for one in moments),
        "left_behind": sum(one.left_behind for one in moments),
        "reaction_s_median": statistics.median(seconds),
        "reaction_s_max": max(seconds),
    }


async def _moments(model: Path, ticket: str, count: int, chance: random.Random) -> list[Moment]:
    done: list[Moment] = []
    async with AsyncClient([ticket], only="tls") as watcher:
        lasts_s = {kind: await _undisturbed(kind, model, ticket) for kind in KINDS}
        for _ in range(count):
            for kind in KINDS:
                moment = Moment(kind, chance.uniform(0.0, lasts_s[kind]))
                await _interrupt(moment, model, ticket)
                moment.left_behind = await _left(watcher)
                if moment.left_behind:
                    moment.problems.append(f"{moment.left_behind} sessions are left")
                done.append(moment)
                _show(len(done), moment)
    return done


def _show(number: int, moment: Moment) -> None:
    verdict = "; ".join(moment.problems) or ("after the end" if moment.finished else "clean")
    words = f"{number} {moment.kind} at {moment.at_s:.3f} s: {verdict}, {moment.reaction_s:.2f} s"
    print(words, file=sys.stderr, flush=True)


async def _left(watcher: AsyncClient) -> int:
    """How many sessions servers still have LEFT_S from now, or as soon as they have none."""
    until = time.monotonic() + LEFT_S
    while True:
        servers = [one.status for one in await watcher.status() if one.status is not None]
        left = sum(one.sessions for one in servers)
        if not left or time.monotonic() >= until:
            return left
        await asyncio.sleep(0.1)


def _arguments(kind: str, model: Path, ticket: str) -> list[str]:
    asked = ["--model", str(model), "--peers", ticket, "--transport", "tls", "--max-tokens", str(TOKENS)]
    if kind == "stream":
        return ["stream", str(model), ticket, str(TOKENS)]
    if kind == "chat":
        return ["command", "chat", *asked, "--temperature", "0"]
    return ["command", "generate", "the sea", *asked]


class _Client:
    """A client in a terminal of its own. What it writes is read all the time."""

    def __init__(self, kind: str, model: Path, ticket: str) -> None:
        self.screen_text = b""
        self._master, self._terminal = pty.openpty()
        self._before = termios.tcgetattr(self._terminal)
        marked, mark = os.pipe()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.interruptible", *_arguments(kind, model, ticket)],
            stdin=self._terminal,
            stdout=self._terminal,
            stderr=self._terminal,
            pass_fds=(mark,),
            env={**os.environ, "MARK": str(mark), "TERM": "xterm", "SHOAL_HOME": str(model.parent / "home")},
            preexec_fn=self._take_terminal,
        )
        os.close(mark)
        self._marked = marked
        asyncio.get_running_loop().add_reader(self._master, self._read)

    @staticmethod
    def _take_terminal() -> None:
        """In the child: the terminal is its own, and Ctrl-C does what it does in a shell, whatever started this bench."""
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            self.screen_text += os.read(self._master, 1 << 16)

    async def begun(self) -> None:
        """Until the first line of its `main`."""
        async with asyncio.timeout(HANGS_S):
            assert await asyncio.to_thread(os.read, self._marked, 1) == b"!", self.screen_text

    def type(self, keys: bytes) -> None:
        """Keys are pressed."""
        os.write(self._master, keys)

    async def ended(self, within_s: float) -> int | None:
        """Its exit code; None if it goes on for longer."""
        until = time.monotonic() + within_s
        while self.process.poll() is None and time.monotonic() < until:  # noqa: ASYNC110 - a process sets no event of ours
            await asyncio.sleep(0.005)
        return self.process.returncode

    @property
    def restored(self) -> bool:
        """Whether the terminal is as it was."""
        return termios.tcgetattr(self._terminal) == self._before

    async def close(self) -> str:
        """End it if need be; returns all that it wrote."""
        if self.process.poll() is None:
            self.process.kill()
            await asyncio.to_thread(self.process.wait)
        await asyncio.sleep(0.02)  # what is still in the terminal's buffer
        asyncio.get_running_loop().remove_reader(self._master)
        for one in (self._master, self._terminal, self._marked):
            os.close(one)
        return self.screen_text.decode(errors="replace")


async def _undisturbed(kind: str, model: Path, ticket: str) -> float:
    """How long a client takes from the first line of its `main` to its end, or to the end of a chat's answer."""
    client = _Client(kind, model, ticket)
    try:
        await client.begun()
        began = time.monotonic()
        if kind == "chat":
            client.type(b"hello\r")
            while client.screen_text.count(PROMPT) < 2:
                assert await client.ended(0.01) is None, client.screen_text
                assert time.monotonic() - began < 3 * HANGS_S, client.screen_text
            lasts_s = time.monotonic() - began
            assert await _told_to_end(client) == 0, client.screen_text
            return lasts_s
        assert await client.ended(3 * HANGS_S) == 0, client.screen_text
        return time.monotonic() - began
    finally:
        await client.close()


async def _interrupt(moment: Moment, model: Path, ticket: str) -> None:
    client = _Client(moment.kind, model, ticket)
    try:
        await client.begun()
        if moment.kind == "chat":
            client.type(b"hello\r")
        finished = await client.ended(moment.at_s) is not None
        interrupted_at = time.monotonic()
        if not finished:
            client.type(CTRL_C)
        moment.code = await client.ended(HANGS_S if moment.kind != "chat" else GOES_ON_S)
        moment.reaction_s = time.monotonic() - interrupted_at
        if moment.kind == "chat" and moment.code is None:
            moment.reaction_s = 0.0  # when it is ready for another line cannot be seen from outside
            moment.code = await _told_to_end(client)
        restored = client.restored
    finally:
        moment.shown = await client.close()
    moment.finished = finished or (moment.kind != "chat" and moment.code in ENDED_ALREADY and RETURNED in moment.shown)
    _judge(moment, restored)


async def _told_to_end(client: _Client) -> int | None:
    """The exit code of a chat that went on and is told that there is no more input."""
    until = time.monotonic() + HANGS_S
    while time.monotonic() < until:
        client.type(CTRL_D)
        if (code := await client.ended(0.3)) is not None:
            return code
    return None


def _judge(moment: Moment, restored: bool) -> None:
    """Note what is not as it should be."""
    if moment.code is None:
        moment.problems.append("it hangs")
    elif moment.code not in CODES[moment.kind] | (ENDED_ALREADY if moment.finished else set()):
        moment.problems.append(f"exit code {moment.code}")
    if found := SAYS.search(moment.shown):
        moment.problems.append(f"it says {found[0]}")
    if not restored:
        moment.problems.append("the terminal is not as it was")
    screen = Screen()
    try:
        screen.feed(moment.shown)
    except ValueError as error:
        moment.problems.append(str(error))
    if screen.modes:
        moment.problems.append(f"modes of the terminal stay on: {', '.join(sorted(screen.modes))}")
    if any(STATUS.match(line) for line in screen.lines):
        moment.problems.append("a status line stays on the screen")
    if not moment.problems:
        moment.shown = ""
