"""A command that prints nothing for a moment says what it waits for; wrong options wait for nothing."""

from __future__ import annotations

import asyncio
import signal
import socket
from asyncio.subprocess import Process
from pathlib import Path

import pytest

from shoal.protocol.messages import RowsFrame
from shoal.swarm.discovery.ticket import Ticket
from shoal.swarm.identity import Identity
from shoal.types import Span
from tests.faults.processes import ENDS_S, SHOAL, ended, running
from tests.faults.test_cancel import INTERRUPTED, holdup
from tests.swarms import NUM_BLOCKS, SwarmMaker

ALL = Span(0, NUM_BLOCKS)
ASKED = ("--raw", "--max-tokens", "400", "--transport", "tls")


async def told(process: Process, words: str) -> str:
    """The first line on standard error with these words, which must come."""
    assert process.stderr is not None
    lines: list[str] = []
    async with asyncio.timeout(ENDS_S):
        while line := (await process.stderr.readline()).decode():
            lines.append(line)
            if words in line:
                return line
    raise AssertionError("".join(lines))


async def test_a_reply_that_waits_says_so(
    swarm_of: SwarmMaker, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While its server computes nothing for it."""
    async with swarm_of(ALL) as swarm, holdup(swarm.servers[0], monkeypatch) as held:
        held.hold_after(RowsFrame)
        command = ("generate", "the sea", *ASKED, "--peers", swarm.ticket)
        async with running(SHOAL, *command, models=tiny_model.parent) as client:
            await told(client, "waiting for the next token")
            client.send_signal(signal.SIGINT)
            assert (await ended(client))[0] == INTERRUPTED


async def test_blocks_that_nobody_has_are_named(swarm_of: SwarmMaker, tiny_model: Path) -> None:
    """And since when they are waited for."""
    async with swarm_of(Span(0, 3)) as swarm:
        command = ("generate", "the sea", *ASKED, "--peers", swarm.ticket)
        async with running(SHOAL, *command, models=tiny_model.parent) as client:
            await told(client, f"waiting for blocks 3:{NUM_BLOCKS}")
            client.send_signal(signal.SIGINT)
            assert (await ended(client))[0] == INTERRUPTED


@pytest.mark.parametrize("command", [("status",), ("generate", "the sea"), ("chat",), ("drain",)])
async def test_a_member_that_says_nothing_is_waited_for_aloud(command: tuple[str, ...], tmp_path: Path) -> None:
    """Every command that contacts somebody says that it does."""
    key = Identity.load(tmp_path / "key")
    with socket.create_server(("127.0.0.1", 0)) as mute:
        ticket = str(Ticket(key.peer, (f"tls://127.0.0.1:{mute.getsockname()[1]}",)))
        rest = (ticket, "--identity", str(tmp_path / "key")) if command == ("drain",) else ("--peers", ticket)
        async with running(SHOAL, *command, *rest, "--transport", "tls") as client:
            await told(client, "asking the server" if command == ("drain",) else "connecting")


@pytest.mark.parametrize(
    "options",
    [
        ("--transport", "pigeon"),
        ("--save", "/no such folder/reply"),
        ("--save", "/dev/null"),
        ("--stop", ""),
        ("--pin", "nowhere"),
        ("--patience", "nan"),
        ("--peers", "shoal1-damaged"),
        ("--model", "/no/such/model"),
        ("--model", "no-such-file.gguf"),
    ],
)
async def test_wrong_options_contact_nobody(options: tuple[str, ...]) -> None:
    """They fail before the first connection."""
    with socket.create_server(("127.0.0.1", 0)) as member:
        member.setblocking(False)
        ticket = Ticket(Identity.generate().peer, (f"tls://127.0.0.1:{member.getsockname()[1]}",))
        async with running(SHOAL, "generate", "the sea", "--peers", str(ticket), *options) as client:
            code, _, err = await ended(client)
        assert code in (1, 2), err
        with pytest.raises(BlockingIOError):
            member.accept()
