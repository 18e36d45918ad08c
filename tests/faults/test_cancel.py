"""Ctrl-C, at moments that are chosen: while rows wait at a server, or while files are read."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import signal
import sys
import threading
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bench.interrupts import run
from shoal.protocol.messages import Message, Opened, RowsFrame
from shoal.server.server import Server
from shoal.types import Span
from tests.faults.processes import ENDS_S, SHOAL, ended, heard, running
from tests.faults.slow_model import READING
from tests.faults.wire import Payload, Sent, on_the_way_out
from tests.swarms import NUM_BLOCKS, SwarmMaker, until

ALL = Span(0, NUM_BLOCKS)
INTERRUPTED = 130
"""The exit code of what Ctrl-C has ended: 128 and the signal's number."""

REACTS_S = 2.0
"""How long Ctrl-C may take: 0.3 s, and the end of a process. A machine on which the start takes longer has as long for this."""

MOMENTS, SEED = 1, 3
MOMENT_S = 0.3
TEMPLATE = "{% for message in messages %}{{ message.content }}\n{% endfor %}"


class Holdup:
    """Keeps a server's compute thread from going on, until it is let go: for longer than a client is waited for."""

    def __init__(self, server: Server) -> None:
        self._worker = server.worker
        self._after: type[Message] | None = None
        self._gates: list[threading.Event] = []
        self._held: list[asyncio.Future[None]] = []

    def watch(self, message: Message, payload: Payload) -> Sent:
        """What the server sends goes through here."""
        if self._after is not None and isinstance(message, self._after):
            self.hold()
        return message, payload

    def hold_after(self, kind: type[Message]) -> None:
        """From the next message of this kind on, nothing is computed."""
        self._after = kind

    def hold(self) -> None:
        """From now on, nothing is computed."""
        self._after = None
        gate = threading.Event()
        self._gates.append(gate)
        self._held.append(asyncio.ensure_future(self._worker.between_steps(lambda: gate.wait(2 * ENDS_S))))

    async def holds(self) -> None:
        """Clients wait, and have done so for a moment."""
        await until(lambda: bool(self._gates), ENDS_S)
        await asyncio.sleep(MOMENT_S)

    def let_go(self) -> None:
        """Compute."""
        for gate in self._gates:
            gate.set()
        self._gates.clear()

    async def close(self) -> None:
        """Let go for good."""
        self._after = None
        self.let_go()
        await asyncio.gather(*self._held)


@contextlib.asynccontextmanager
async def holdup(server: Server, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Holdup]:
    """A server that can be held up."""
    held = Holdup(server)
    on_the_way_out(monkeypatch, held.watch)
    try:
        yield held
    finally:
        await held.close()


async def test_ctrl_c_ends_a_command(swarm_of: SwarmMaker, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reply that waits for its next row ends at Ctrl-C: at once, without a traceback, with exit code 130."""
    command = ("generate", "the sea", "--raw", "--max-tokens", "400", "--transport", "tls")
    async with swarm_of(ALL) as swarm, holdup(swarm.servers[0], monkeypatch) as held:
        held.hold_after(RowsFrame)
        async with running(SHOAL, *command, "--peers", swarm.ticket, models=tiny_model.parent) as client:
            await held.holds()
            client.send_signal(signal.SIGINT)
            code, _, err = await ended(client)
    assert "Traceback" not in err
    assert code == INTERRUPTED


async def test_ctrl_c_ends_a_command_that_opens_its_model(swarm_of: SwarmMaker, tiny_model: Path) -> None:
    """A model that is being read from a slow disk holds no Ctrl-C up."""
    command = ("generate", "the sea", "--raw", "--model", str(tiny_model), "--transport", "tls")
    async with swarm_of(ALL) as swarm:
        began = time.monotonic()
        async with running("tests.faults.slow_model", *command, "--peers", swarm.ticket) as client:
            await said(client, READING)
            started_s = time.monotonic() - began
            client.send_signal(signal.SIGINT)
            code, _, err = await ended(client, max(REACTS_S, started_s))
    assert "Traceback" not in err
    assert code == INTERRUPTED


async def said(process: Process, line: str) -> None:
    """A line on standard error, which must come."""
    assert process.stderr is not None
    async with asyncio.timeout(ENDS_S):
        while (heard := await process.stderr.readline()).decode().strip() != line:
            assert heard, "the process ended without that line"


async def test_ctrl_c_ends_a_turn_and_no_chat(
    swarm_of: SwarmMaker, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chat goes on after Ctrl-C has ended one of its replies."""
    talkative = shutil.copytree(tiny_model, tmp_path / "talkative")
    (talkative / "chat_template.jinja").write_text(TEMPLATE)
    command = ("chat", "--model", str(talkative), "--max-tokens", "32", "--temperature", "0", "--transport", "tls")
    async with swarm_of(ALL) as swarm, holdup(swarm.servers[0], monkeypatch) as held:
        held.hold_after(RowsFrame)
        async with running(SHOAL, *command, "--json", "--peers", swarm.ticket) as client:
            assert client.stdin is not None
            client.stdin.write(b"hello\n")
            await held.holds()
            client.send_signal(signal.SIGINT)
            await asyncio.sleep(MOMENT_S)
            held.let_go()
            code, out, err = await ended(client, said=b"and again\n")
    assert "Traceback" not in err
    assert code == 0
    assert json.loads(out.splitlines()[-1])["text"]


async def test_ctrl_c_is_a_keyboard_interrupt(
    swarm_of: SwarmMaker, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model whose streams are interrupted while they open, in the prompt and while they decode raises KeyboardInterrupt.

    Whoever catches that goes on with the same model.
    """
    interruptions = 3
    async with swarm_of(ALL) as swarm, holdup(swarm.servers[0], monkeypatch) as held:
        command = (str(tiny_model), swarm.ticket, str(interruptions))
        async with running("tests.faults.interrupted", *command) as reader:
            held.hold()
            for next_ in (Opened, RowsFrame, None):
                assert await heard(reader) == "asked"
                await held.holds()
                if next_ is not None:
                    held.hold_after(next_)
                reader.send_signal(signal.SIGINT)
                assert await heard(reader) == "KeyboardInterrupt"
                held.let_go()
            code, out, err = await ended(reader)
    assert code == 0, err
    assert len(json.loads(out)) == 8


async def test_ctrl_c_breaks_no_import() -> None:
    """The first use imports what is heavy; Ctrl-C meanwhile is a KeyboardInterrupt, after which everything works."""
    async with running("tests.faults.interrupted_import") as program:
        code, out, err = await ended(program)
    assert (code, out.split()) == (0, ["KeyboardInterrupt", "2"]), err
    assert err == ""


@pytest.mark.skipif(sys.platform != "linux", reason="needs a terminal of its own")
@pytest.mark.timeout(300)
async def test_ctrl_c_at_any_moment() -> None:
    """A moment each of `generate`, `chat` and a stream in Python; `python -m bench interrupts` makes a hundred."""
    found = await asyncio.to_thread(run, MOMENTS, SEED)
    assert found["unclean"] == []
    assert found["left_behind"] == 0
