"""Heartbeats: when silence means something, and what an answer tells."""

from __future__ import annotations

import msgspec
import pytest

from shoal.client.pulse import PING_ACTIVE_S, PING_IDLE_S, SILENCE_S, Pulse
from shoal.testing.clock import VirtualClock
from shoal.wire.messages import Pong


async def test_silence_counts_from_a_question() -> None:
    """Nobody is silent who was not asked; an answer, or a restart of the timers, ends it."""
    clock = VirtualClock()
    pulse = Pulse(clock)
    await clock.advance(100.0)
    assert not pulse.silent(clock.monotonic())
    ping = pulse.ping()
    await clock.advance(SILENCE_S - PING_ACTIVE_S)
    assert not pulse.silent(clock.monotonic())
    await clock.advance(PING_ACTIVE_S)
    assert pulse.silent(clock.monotonic())
    assert pulse.on_pong(Pong(ping.id, clock.wall(), clock.wall()))
    assert not pulse.silent(clock.monotonic())
    pulse.ping()
    await clock.advance(SILENCE_S)
    pulse.restart()
    assert not pulse.silent(clock.monotonic())


async def test_an_answer_to_nothing_is_none() -> None:
    """A hop cannot make itself heard by inventing answers; one that comes twice is only heard."""
    pulse = Pulse(VirtualClock())
    assert not pulse.on_pong(Pong(0, 0.0, 0.0))
    pulse.ping()
    assert pulse.on_pong(Pong(0, 0.0, 0.0))
    assert pulse.on_pong(Pong(0, 0.0, 0.0))
    assert not pulse.on_pong(Pong(1, 0.0, 0.0))


async def test_progress_changes_when_the_hop_says_something_new() -> None:
    """Being heard is not getting on."""
    clock = VirtualClock()
    pulse = Pulse(clock)
    for computed, changed_at in ((0, 0.0), (1, 2.0), (1, 2.0)):
        await clock.advance(1.0)
        pulse.hear(msgspec.structs.replace(Pong(0, 0.0, 0.0), position=computed, computed=computed))
        assert pulse.changed_at == changed_at
    assert pulse.heard_at == 3.0


async def test_the_fastest_exchange_tells_the_clocks_offset() -> None:
    """As in NTP: half of the round trip each way; a slower one later changes nothing."""
    clock = VirtualClock()
    pulse = Pulse(clock)
    for way_s in (0.1, 0.4):
        ping, sent_at = pulse.ping(), clock.wall()
        await clock.advance(2 * way_s)
        theirs = sent_at + way_s + 50.0
        pulse.on_pong(Pong(ping.id, theirs, theirs))
        assert pulse.round_trip_s == pytest.approx(0.2)
        assert pulse.clock_offset_s == pytest.approx(50.0)


async def test_heartbeats_are_frequent_while_a_step_is_under_way() -> None:
    """The timers restart when it begins."""
    clock = VirtualClock()
    pulse = Pulse(clock)
    assert pulse.interval_s == PING_IDLE_S
    pulse.ping()
    await clock.advance(SILENCE_S + 1)
    pulse.active = True
    assert pulse.interval_s == PING_ACTIVE_S
    assert not pulse.silent(clock.monotonic())
