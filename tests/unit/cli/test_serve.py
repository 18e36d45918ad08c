"""`shoal serve`: what it says, and how it ends."""

from __future__ import annotations

import asyncio
import io
import json
from types import SimpleNamespace

import msgspec
import pytest

from shoal.cli.serve import _check_memory, _drain, _how_to_join, _load, _progress, _run, _who_reaches
from shoal.cli.terminal import waiting, waits_for
from shoal.errors import UsageError
from shoal.protocol.messages import Status
from shoal.types import PeerId, Span
from tests.unit.swarm.routing.test_route_planner import server as record

STATUS = Status(1, 4, 20, 30_000, 40_000, 12.4, 100.0, 60.0)


class Server:
    """A server with sessions that move when the test says so."""

    def __init__(self, sessions: int = 2, left: int = 0, private: str | None = None) -> None:
        self.record = record(PeerId("a" * 64), 0, 4)
        self.ticket = "shoal1-ticket"
        self.addresses = ("tls://127.0.0.1:1",)
        self.private_swarm = private
        self.ordered_to_leave = asyncio.Event()
        self.sessions = [SimpleNamespace()] * sessions
        self.moved = asyncio.Event()
        self.left = left
        self.drains = 0
        self.blocks_only_here: tuple[Span, ...] = ()

    def status(self) -> Status:
        """Server."""
        return STATUS

    async def drain(self) -> int:
        """Server."""
        self.drains += 1
        await self.moved.wait()
        return self.left


def test_what_is_loaded(said: io.StringIO, capsys: pytest.CaptureFixture[str]) -> None:
    """Lines for people, with a count where there is one, or events for programs."""
    for as_json in (False, True):
        show = _progress(as_json)
        show("opening the checkpoint", 0, 0)
        show("loading blocks", 4, 4)
    assert said.getvalue() == "opening the checkpoint\nloading blocks 4/4\n"
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert events[1] == {"event": "loading", "what": "loading blocks", "done": 4, "total": 4}


def test_a_ticket_says_whom_it_is_for() -> None:
    """Others need an invite besides where the swarm is private; the ticket of a server that keeps its key lasts."""
    public = _how_to_join(Server(), kept=False)  # type: ignore[arg-type]  # a server by its shape
    assert "--peers" in public[0]
    assert "until this server stops" in public[1]
    private = _how_to_join(Server(private="home"), kept=True)  # type: ignore[arg-type]  # by its shape
    assert "shoal swarm invite home" in private[0]
    assert "after a restart too" in private[1]


@pytest.mark.parametrize(
    ("addresses", "words"),
    [
        (("tls://127.0.0.1:1", "iroh://[::1]:2"), "on this machine alone"),
        (("tls://127.0.0.1:1", "tls://192.168.1.5:1"), "from this network"),
        (("tls://[fe80::1]:1",), "from this network"),
        (("tls://10.0.0.1:1", "tls://8.8.8.8:1"), "from anywhere"),
        (("iroh://https://relay.example/",), "on this machine alone"),
    ],
)
def test_a_ticket_says_who_reaches_the_server(addresses: tuple[str, ...], words: str) -> None:
    """By the widest of its addresses."""
    assert words in _who_reaches(addresses)


@pytest.mark.parametrize("how", ["signal", "order"])
async def test_it_serves_until_it_is_told(how: str, said: io.StringIO, capsys: pytest.CaptureFixture[str]) -> None:
    """By this process or by its owner from elsewhere; programs are told when it is ready."""
    server, stop = Server(), asyncio.Event()
    running = asyncio.ensure_future(_run(server, stop, as_json=how == "signal"))  # type: ignore[arg-type]  # by its shape
    await asyncio.sleep(0)
    assert not running.done()
    (stop if how == "signal" else server.ordered_to_leave).set()
    async with asyncio.timeout(5):
        await running
    shown = capsys.readouterr().out.strip()
    if how == "signal":
        assert json.loads(shown) == {"event": "ready", "ticket": server.ticket, "peer": "a" * 64, "span": [0, 4]}
    else:
        assert shown == server.ticket
        assert "blocks 0:4 of 8" in said.getvalue()


async def test_sessions_move_before_it_leaves(said: io.StringIO) -> None:
    """Those that found no other server are counted."""
    server = Server(left=1)
    server.moved.set()
    await _drain(server, asyncio.Event())  # type: ignore[arg-type]  # a server by its shape
    assert "2 sessions to move" in said.getvalue()
    assert "1 session found no other server" in said.getvalue()


async def test_a_server_that_leaves_says_so(said: io.StringIO) -> None:
    """As long as it takes to tell the others, of whom one may not answer."""
    server = Server(sessions=0)
    server.moved.set()
    waits_for("")
    await _drain(server, asyncio.Event())  # type: ignore[arg-type]  # a server by its shape
    assert waiting.text == "leaving the swarm"


async def test_the_last_holder_of_blocks_is_warned(said: io.StringIO) -> None:
    """Before it leaves, whether or not it has sessions."""
    server = Server(sessions=0)
    server.moved.set()
    await _drain(server, asyncio.Event())  # type: ignore[arg-type]  # a server by its shape
    assert "warning" not in said.getvalue()
    server.blocks_only_here = (Span(0, 2), Span(3, 4))
    await _drain(server, asyncio.Event())  # type: ignore[arg-type]  # a server by its shape
    assert "warning: no other server has blocks 0:2, 3:4" in said.getvalue()


async def test_a_second_ctrl_c_leaves_at_once(said: io.StringIO) -> None:
    """Before the sessions have moved, or before they were even told."""
    server, at_once = Server(), asyncio.Event()
    draining = asyncio.ensure_future(_drain(server, at_once))  # type: ignore[arg-type]  # a server by its shape
    await asyncio.sleep(0)
    assert not draining.done()
    at_once.set()
    async with asyncio.timeout(5):
        await draining
    assert "found no other" not in said.getvalue()
    await _drain(server, at_once)  # type: ignore[arg-type]  # a server by its shape
    assert server.drains == 1


def test_a_load_in_a_line() -> None:
    """One session is one session, and a rate that was not measured is not nought."""
    assert _load(STATUS) == "1 session · 20 rows waiting · 30,000 of 40,000 tokens free · 12.4 rows/s"
    fresh = msgspec.structs.replace(STATUS, sessions=0, queued_rows=1, decode_rows_per_s=0.0)
    assert _load(fresh) == "0 sessions · 1 row waiting · 30,000 of 40,000 tokens free"


def test_no_more_memory_than_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what the machine has; where that is unknown, everything is believed."""
    monkeypatch.setattr("shoal.cli.serve.machine_memory_bytes", lambda: 23 * 10**9)
    _check_memory(23 * 10**9)
    with pytest.raises(UsageError, match="--memory cannot be 30GB: this machine has 23GB"):
        _check_memory(30 * 10**9)
    monkeypatch.setattr("shoal.cli.serve.machine_memory_bytes", lambda: None)
    _check_memory(10**15)
