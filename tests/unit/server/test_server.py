"""A server's process and its tasks."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from shoal.errors import ShoalError
from shoal.server.gossip import Gossip
from shoal.server.hosting.prefetcher import Prefetcher
from shoal.server.hosting.rebalancing import Rebalancing
from shoal.server.hosting.span_host import SpanHost
from shoal.server.sessions.hop_session import SessionTable
from shoal.types import Span
from tests.swarms import SwarmMaker, until

SPAN = Span(0, 2)

HEAVY = ("torch._dynamo", "torch._inductor", "sympy", "transformers")


def test_a_server_does_not_load_torchs_compiler() -> None:
    """It takes 76 MB and seconds, and nothing here needs it; nor does a server need transformers."""
    script = f"import sys, shoal.server.server; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100, check=True)
    assert done.stdout.strip() == "[]"


def failing_once(work: Callable[..., Awaitable[Any]], fails: list[bool]) -> Callable[..., Awaitable[Any]]:
    """The same work, which makes a mistake as long as `fails` has entries."""

    async def run(*arguments: Any) -> Any:
        if fails:
            fails.pop()
            raise RuntimeError("a mistake of this program")
        return await work(*arguments)

    return run


@pytest.mark.parametrize(
    ("owner", "method", "name"),
    [
        (Gossip, "keep", "gossip"),
        (SpanHost, "look_around", "announcing"),
        (Rebalancing, "keep", "rebalancing"),
        (Prefetcher, "keep", "prefetching"),
    ],
)
async def test_a_task_begins_again_after_a_mistake(
    swarm_of: SwarmMaker,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    owner: type,
    method: str,
    name: str,
) -> None:
    """The mistake is logged with its trace, the server goes on, and so does the task."""
    fails, again = [True], asyncio.Event()
    work = failing_once(getattr(owner, method), fails)

    async def noted(*arguments: Any) -> Any:
        if not fails:
            again.set()
        return await work(*arguments)

    monkeypatch.setattr(owner, method, noted)
    monkeypatch.setattr("shoal.server.server.RECORD_RENEWAL_S", 0.01)
    monkeypatch.setattr("shoal.tasks.FIRST_PAUSE_S", 0.01)
    with caplog.at_level(logging.ERROR, "shoal"):
        async with swarm_of(SPAN, blocks=None, num_blocks=2) as swarm, asyncio.timeout(20):
            await again.wait()
            assert swarm.servers[0].serving
    assert f"{name} failed" in caplog.text
    assert "a mistake of this program" in caplog.text


async def test_a_dead_compute_thread_ends_the_server(swarm_of: SwarmMaker) -> None:
    """The body is cancelled, and the error says what happened."""
    with pytest.raises(ShoalError, match="the compute thread died: KeyboardInterrupt"):
        async with swarm_of(SPAN) as swarm, asyncio.timeout(20):

            def die() -> None:
                raise KeyboardInterrupt

            with pytest.raises(ShoalError):
                await swarm.servers[0].worker.between_steps(die)
            await until(lambda: False)


async def test_a_mistake_in_expiring_ends_the_server(swarm_of: SwarmMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that cannot free what it granted does not go on."""
    with pytest.raises(RuntimeError, match="a mistake"):
        async with swarm_of(SPAN), asyncio.timeout(20):
            monkeypatch.setattr(SessionTable, "expire", failing_once(SessionTable.expire, [True]))
            await until(lambda: False)
