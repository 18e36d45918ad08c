"""Whom a server measures, and what it tells of that."""

from __future__ import annotations

from typing import Any

import pytest

from shoal.errors import DialError
from shoal.protocol.messages import Status
from shoal.server.hosting import peer_latency
from shoal.server.hosting.peer_latency import MEASURED_AT_ONCE, PeerLatency
from shoal.swarm.directory.records import MAX_ROUND_TRIPS, ServerRecord
from shoal.transport.asking import TimedAnswer
from shoal.transport.dialler import Dialler
from shoal.types import PeerId, Span
from tests.support.virtual_clock import VirtualClock
from tests.unit.swarm.routing.test_route_planner import server

MINE = Span(0, 4)


class Measured:
    """A server's measurements in a network with these round trips; who has none is away."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: dict[str, float]) -> None:
        self.seconds = seconds
        self.asked: list[str] = []
        self.latency = PeerLatency(Dialler([]), VirtualClock())
        monkeypatch.setattr(peer_latency, "ask", self._ask)

    async def _ask(self, dialler: Dialler, contact: tuple[str, Any], *rest: Any, **options: Any) -> TimedAnswer[Status]:
        self.asked.append(contact[0])
        if contact[0] not in self.seconds:
            raise DialError("away")
        return TimedAnswer(Status(0, 0, 0, 0, 0, 0.0, 0.0, 0.0), b"", self.seconds[contact[0]])


def records(count: int) -> list[ServerRecord]:
    """Servers of the blocks after mine."""
    return [server(PeerId(f"{number:064x}"), 2, 8) for number in range(count)]


async def test_likely_successors_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that hold the next block and stay; not those that end with mine or begin further on."""
    measured = Measured(monkeypatch, {letter * 64: 0.01 for letter in "abcde"})
    await measured.latency.measure(
        MINE,
        [
            server(PeerId("a" * 64), 4, 8),
            server(PeerId("b" * 64), 0, 4),
            server(PeerId("c" * 64), 5, 8),
            server(PeerId("d" * 64), 0, 8),
            server(PeerId("e" * 64), 4, 8, draining=True),
        ],
    )
    assert sorted(measured.asked) == ["a" * 64, "d" * 64]


async def test_the_nearest_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as a record holds, to the microsecond; who does not answer is left out."""
    known = records(MEASURED_AT_ONCE)
    seconds = {one.peer: 0.1 - 0.0100000001 * index for index, one in enumerate(known)}
    away = seconds.popitem()[0]
    measured = Measured(monkeypatch, seconds)
    await measured.latency.measure(MINE, known)
    told = measured.latency.round_trips
    assert away in measured.asked
    assert len(told) == MAX_ROUND_TRIPS
    nearest = sorted(seconds.items(), key=lambda item: item[1])[:MAX_ROUND_TRIPS]
    assert told == tuple((peer, round(value, 6)) for peer, value in nearest)


async def test_the_nearest_so_far_are_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Together with others by chance, a bounded number at once; what has gone away is forgotten."""
    known = records(10 * MEASURED_AT_ONCE)
    measured = Measured(monkeypatch, {one.peer: 0.1 + index for index, one in enumerate(known)})
    await measured.latency.measure(MINE, known)
    assert len(measured.asked) == MEASURED_AT_ONCE
    nearest = {peer for peer, _ in measured.latency.round_trips}
    measured.asked.clear()
    gone = min(nearest)
    del measured.seconds[gone]
    await measured.latency.measure(MINE, known)
    assert nearest < set(measured.asked)
    assert len(measured.asked) == MEASURED_AT_ONCE
    assert gone not in dict(measured.latency.round_trips)


async def test_nobody_is_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last server of a route has only the client behind it: old measurements say nothing any more."""
    measured = Measured(monkeypatch, {one.peer: 0.1 for one in records(2)})
    await measured.latency.measure(MINE, records(2))
    await measured.latency.measure(Span(4, 8), records(2))
    assert measured.latency.round_trips == ()
