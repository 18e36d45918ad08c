"""Whose handshake is next, and when."""

from __future__ import annotations

import pytest

from shoal.transport.handshake_queue import HALF_LIFE_S, HandshakeQueue
from tests.support.virtual_clock import VirtualClock

COST_S = 0.001


def enter(queue: HandshakeQueue[str], *names: str) -> None:
    """Handshakes that wait; each is named by its source and a number."""
    for name in names:
        queue.enter(name, name.split()[0])


def order(queue: HandshakeQueue[str], count: int) -> list[str]:
    """The next so many, each of which costs as much."""
    begun = []
    for _ in range(count):
        begun.append(queue.next())
        queue.spent(begun[-1].split()[0], COST_S)
    return begun


def test_sources_take_turns() -> None:
    """One of each source, the oldest first, however many a source has."""
    queue: HandshakeQueue[str] = HandshakeQueue(VirtualClock())
    enter(queue, "a 1", "a 2", "a 3", "b 1", "b 2", "c 1")
    assert order(queue, 6) == ["a 1", "b 1", "c 1", "a 2", "b 2", "a 3"]
    assert not queue


def test_a_newcomer_passes_those_that_have_used_much() -> None:
    """A source that has had no handshake of late is next but one, whoever has waited before it."""
    queue: HandshakeQueue[str] = HandshakeQueue(VirtualClock())
    enter(queue, *(f"{number % 50} {number}" for number in range(400)))
    order(queue, 108)
    enter(queue, "new 1")
    assert "new 1" in order(queue, 2)


def test_fresh_addresses_keep_nobody_waiting() -> None:
    """Who has had many turns has its next within two turns of each source that waited before it, however many come later."""
    queue: HandshakeQueue[str] = HandshakeQueue(VirtualClock())
    queue.spent("known", 1000 * COST_S)
    enter(queue, *(f"fresh{number} 1" for number in range(20)), "known 1")
    begun = []
    for number in range(20, 80):
        enter(queue, f"fresh{number} 1")
        begun += order(queue, 1)
    assert begun.index("known 1") <= 2 * 21


async def test_use_is_forgotten() -> None:
    """Who used more some time ago goes before one that has used more since."""
    clock = VirtualClock()
    queue: HandshakeQueue[str] = HandshakeQueue(clock)
    queue.spent("a", 3 * COST_S)
    await clock.advance(2 * HALF_LIFE_S)
    queue.spent("b", COST_S)
    queue.spent("c", 1.0)
    enter(queue, "c 1", "b 1", "a 1")
    assert order(queue, 2) == ["c 1", "a 1"]


def test_sources_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """What sources have used takes bounded room."""
    monkeypatch.setattr("shoal.transport.handshake_queue.MAX_SOURCES", 3)
    queue: HandshakeQueue[str] = HandshakeQueue(VirtualClock())
    for source in "abcda":
        queue.spent(source, COST_S)
    assert list(queue._used) == ["c", "d", "a"]


def test_who_leaves_waits_no_more() -> None:
    """Leaving twice is harmless."""
    queue: HandshakeQueue[str] = HandshakeQueue(VirtualClock())
    queue.enter("a1", "a")
    queue.enter("a2", "a")
    for _ in range(2):
        queue.leave("a1", "a")
    queue.leave("b1", "b")
    assert queue.next() == "a2"
    assert not queue


async def test_handshakes_get_their_share_of_the_time() -> None:
    """A crowd that comes at once does not wait; a flood gets a part of every second."""
    clock = VirtualClock()
    queue: HandshakeQueue[int] = HandshakeQueue(clock, share=0.2, burst_s=0.1)
    begun = 0
    for number in range(10_000):
        queue.enter(number, str(number % 7))
    while not queue.wait_s():
        queue.spent(str(queue.next() % 7), COST_S)
        begun += 1
    assert begun == pytest.approx(100, abs=1)
    until = clock.monotonic() + 10.0
    while clock.monotonic() < until:
        await clock.advance(queue.wait_s())
        queue.spent(str(queue.next() % 7), COST_S)
        begun += 1
    assert begun == pytest.approx(100 + 10 * 0.2 / COST_S, rel=0.01)
