"""Heartbeats: when silence means something, and what an answer tells."""

from __future__ import annotations

import msgspec
import pytest

from shoal.client.session.heartbeat import PING_ACTIVE_S, PING_IDLE_S, SILENCE_S, Heartbeat
from shoal.protocol.messages import Pong
from tests.support.virtual_clock import VirtualClock


async def test_silence_counts_from_a_question() -> None:
    """Nobody is silent who was not asked; an answer, or a restart of the timers, ends it."""
    clock = VirtualClock()
    heartbeat = Heartbeat(clock)
    await clock.advance(100.0)
    assert not heartbeat.silent(clock.monotonic())
    ping = heartbeat.ping()
    await clock.advance(SILENCE_S - PING_ACTIVE_S)
    assert not heartbeat.silent(clock.monotonic())
    await clock.advance(PING_ACTIVE_S)
    assert heartbeat.silent(clock.monotonic())
    assert heartbeat.on_pong(Pong(ping.id, clock.wall(), clock.wall()))
    assert not heartbeat.silent(clock.monotonic())
    heartbeat.ping()
    await clock.advance(SILENCE_S)
    heartbeat.restart()
    assert not heartbeat.silent(clock.monotonic())


async def test_an_answer_to_nothing_is_none() -> None:
    """A hop cannot make itself heard by inventing answers; one that comes twice is only heard."""
    heartbeat = Heartbeat(VirtualClock())
    assert not heartbeat.on_pong(Pong(0, 0.0, 0.0))
    heartbeat.ping()
    assert heartbeat.on_pong(Pong(0, 0.0, 0.0))
    assert heartbeat.on_pong(Pong(0, 0.0, 0.0))
    assert not heartbeat.on_pong(Pong(1, 0.0, 0.0))


async def test_progress_changes_when_the_hop_says_something_new() -> None:
    """Being heard is not getting on."""
    clock = VirtualClock()
    heartbeat = Heartbeat(clock)
    for computed, changed_at in ((0, 0.0), (1, 2.0), (1, 2.0)):
        await clock.advance(1.0)
        heartbeat.hear(msgspec.structs.replace(Pong(0, 0.0, 0.0), position=computed, computed=computed))
        assert heartbeat.changed_at == changed_at
    assert heartbeat.heard_at == 3.0


async def test_the_fastest_exchange_tells_the_clocks_offset() -> None:
    """As in NTP: half of the round trip each way; a slower one later changes nothing."""
    clock = VirtualClock()
    heartbeat = Heartbeat(clock)
    for way_s in (0.1, 0.4):
        ping, sent_at = heartbeat.ping(), clock.wall()
        await clock.advance(2 * way_s)
        theirs = sent_at + way_s + 50.0
        heartbeat.on_pong(Pong(ping.id, theirs, theirs))
        assert heartbeat.round_trip_s == pytest.approx(0.2)
        assert heartbeat.clock_offset_s == pytest.approx(50.0)


async def test_heartbeats_are_frequent_while_a_step_is_under_way() -> None:
    """The timers restart when it begins."""
    clock = VirtualClock()
    heartbeat = Heartbeat(clock)
    assert heartbeat.interval_s == PING_IDLE_S
    heartbeat.ping()
    await clock.advance(SILENCE_S + 1)
    heartbeat.set_active(True)
    assert heartbeat.interval_s == PING_ACTIVE_S
    assert not heartbeat.silent(clock.monotonic())
