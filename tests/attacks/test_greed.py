"""What one client takes of a server, and what that costs the others: memory has its bounds, and nobody is shut out."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shoal.client.client import AsyncClient
from shoal.client.remote_model import open_model
from shoal.swarm.directory.records import ServerRecord
from tests.attacks.hostile_client import LIES, STORMS, HostileClient, ask_greedily, lying
from tests.faults.processes import SHOAL, heard, running
from tests.integration.test_swarm import reply

MEMORY_MB = 128
ON_TOP_MB = 300
"""For the interpreter and its libraries."""

SLOWER = 2.0
SLACK_S = 3.0
"""This process is the liar as well as the honest client, and the machine is busy with other tests."""


class Victim:
    """A server in a process of its own, and an honest client at another address."""

    def __init__(self, process: Process, ticket: str, record: ServerRecord) -> None:
        self.process = process
        self.ticket = ticket
        self.record = record

    @property
    def rss_mb(self) -> float:
        """Memory that the server has now."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * 4096 / 1e6

    def client(self) -> AsyncClient:
        """An honest one."""
        return AsyncClient([self.ticket], only="tls")

    def stranger(self, host: str = "127.0.0.2") -> HostileClient:
        """A client that means no good."""
        return HostileClient(self.ticket, self.record, host)

    async def tokens(self, model: Path) -> tuple[list[int], float]:
        """An honest reply, and how long it took."""
        began = time.monotonic()
        async with asyncio.timeout(60), self.client() as client, await open_model(client, str(model)) as remote:
            return (await reply(remote, "the sea, the sea", max_tokens=16)).token_ids, time.monotonic() - began


@pytest.fixture
async def victim(tiny_model: Path) -> AsyncIterator[Victim]:
    """It has no other server beside it."""
    options = ("--memory", f"{MEMORY_MB}MB", "--transport", "tls", "--json", "--log-level", "error")
    async with contextlib.AsyncExitStack() as stack:
        process = await stack.enter_async_context(running(SHOAL, "serve", str(tiny_model), *options))
        said: dict[str, str] = {}
        while said.get("event") != "ready":
            said = json.loads(await heard(process))
        async with AsyncClient([said["ticket"]], only="tls") as client:
            (record,) = client.records()
        yield Victim(process, said["ticket"], record)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("name", [name for name in LIES if name not in STORMS])
async def test_floods(victim: Victim, tiny_model: Path, name: str) -> None:
    """Memory stays within what the owner gave; an honest client gets the same tokens, and hardly later."""
    expected, _ = await victim.tokens(tiny_model)
    _, usual_s = await victim.tokens(tiny_model)
    async with victim.stranger() as stranger, lying(stranger, LIES[name]):
        tokens, took_s = await victim.tokens(tiny_model)
        rss_mb = victim.rss_mb
    print(f"{name}: {took_s:.2f} s, usually {usual_s:.2f} s, {rss_mb:.0f} MB, {stranger.refused} refused")
    assert tokens == expected
    assert took_s <= SLOWER * usual_s + SLACK_S
    assert rss_mb <= MEMORY_MB + ON_TOP_MB


@pytest.mark.timeout(180)
@pytest.mark.parametrize("name", ["shake_hands_from_everywhere", "talk_junk"])
async def test_storms_of_connections(victim: Victim, tiny_model: Path, name: str) -> None:
    """From 500 addresses, a key each, without end: an honest client comes in and has its reply."""
    expected, usual_s = await victim.tokens(tiny_model)
    async with running("bench.attack_process", "flood", json.dumps([victim.ticket, name])) as storm:
        await heard(storm)
        tokens, took_s = await victim.tokens(tiny_model)
        rss_mb = victim.rss_mb
    print(f"{name}: {took_s:.2f} s, usually {usual_s:.2f} s, {rss_mb:.0f} MB")
    assert tokens == expected
    assert took_s <= SLOWER * usual_s + SLACK_S
    assert rss_mb <= MEMORY_MB + ON_TOP_MB


@pytest.mark.timeout(180)
async def test_a_crowd_of_greedy_clients(victim: Victim, tiny_model: Path) -> None:
    """Fifty addresses ask for sessions without pause and keep them: an honest client opens at once and has its reply."""
    expected, usual_s = await victim.tokens(tiny_model)
    async with contextlib.AsyncExitStack() as stack:
        greedy = [await stack.enter_async_context(victim.stranger(f"127.0.1.{last}")) for last in range(1, 51)]
        tasks = [asyncio.ensure_future(ask_greedily(one)) for one in greedy]
        await asyncio.sleep(3.0)
        began = time.monotonic()
        async with victim.client() as client, client.session(await client.find_model(), max_tokens=64):
            opened_s = time.monotonic() - began
        tokens, took_s = await victim.tokens(tiny_model)
        rss_mb = victim.rss_mb
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    print(f"opened in {opened_s:.2f} s, reply in {took_s:.2f} s, usually {usual_s:.2f} s, {rss_mb:.0f} MB")
    assert opened_s < 5.0
    assert tokens == expected
    assert took_s <= 2 * 51 * usual_s
    assert rss_mb <= MEMORY_MB + ON_TOP_MB
