"""The tasks of a transport."""

from __future__ import annotations

import asyncio
import logging

import pytest

from shoal.transport.inbound_tasks import InboundTasks


async def wait_for(event: asyncio.Event) -> None:
    """Work that lasts as long as the test wants."""
    await event.wait()


async def test_the_oldest_unproven_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """With too many handshakes under way, the one that has taken longest is dropped."""
    monkeypatch.setattr("shoal.transport.inbound_tasks.MAX_PENDING_HANDSHAKES", 2)
    tasks, event = InboundTasks(), asyncio.Event()
    started = [tasks.start_unproven(wait_for(event)) for _ in range(4)]
    await asyncio.sleep(0.01)
    assert [task.task.cancelled() for task in started] == [True, True, False, False]
    await tasks.close()


async def test_who_is_proven_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that is through its handshake is not dropped for others."""
    monkeypatch.setattr("shoal.transport.inbound_tasks.MAX_PENDING_HANDSHAKES", 1)
    tasks, event = InboundTasks(), asyncio.Event()

    async def prove() -> None:
        tasks.proven()
        await event.wait()

    first = tasks.start_unproven(prove())
    await asyncio.sleep(0)
    second, third = tasks.start_unproven(wait_for(event)), tasks.start_unproven(wait_for(event))
    await asyncio.sleep(0.01)
    assert [first.done, second.done, third.done] == [False, True, False]
    await tasks.close()
    assert first.task.cancelled()


async def test_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """Full at MAX_INBOUND, and no longer when one has finished."""
    monkeypatch.setattr("shoal.transport.inbound_tasks.MAX_INBOUND", 2)
    tasks, event = InboundTasks(), asyncio.Event()
    tasks.start(wait_for(event))
    assert not tasks.full
    tasks.start(asyncio.sleep(0))
    assert tasks.full
    await asyncio.sleep(0.01)
    assert not tasks.full
    await tasks.close()


async def test_a_mistake_is_logged_and_ends_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    """The trace of the mistake is there to be read."""
    tasks, event = InboundTasks(), asyncio.Event()

    async def fail() -> None:
        raise ValueError("a mistake of this program")

    other = tasks.start(wait_for(event))
    with caplog.at_level(logging.ERROR, "shoal"):
        await tasks.start(fail()).wait()
        await asyncio.sleep(0)
    assert "a mistake of this program" in caplog.text
    assert not other.done
    await tasks.close()
