"""The machine's clocks."""

from __future__ import annotations

import asyncio
import time

import pytest

from shoal.clock import SYSTEM_CLOCK


def test_durations_and_moments_are_two_clocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that is set does not change durations."""
    monkeypatch.setattr(time, "monotonic", lambda: 5.0)
    monkeypatch.setattr(time, "time", lambda: 1e9)
    assert (SYSTEM_CLOCK.monotonic(), SYSTEM_CLOCK.wall()) == (5.0, 1e9)


async def test_sleeping_is_the_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    """A timer of the running loop ends it, and it can be cancelled."""
    loop = asyncio.get_running_loop()
    asked: list[float] = []
    call_later = loop.call_later

    def at_once(delay: float, *arguments: object) -> asyncio.TimerHandle:
        asked.append(delay)
        return call_later(0.0, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "call_later", at_once)
    await SYSTEM_CLOCK.sleep(3600.0)
    assert asked == [3600.0]
    monkeypatch.undo()
    sleeping = asyncio.ensure_future(SYSTEM_CLOCK.sleep(3600.0))
    await asyncio.sleep(0)
    sleeping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sleeping
