"""Heartbeats: when silence means something, and what an answer tells."""

from __future__ import annotations

import msgspec
import pytest

from shoal.client.session.heartbeat import EXCUSED_S, PING_ACTIVE_S, PING_IDLE_S, SILENCE_S, Heartbeat
from shoal.protocol.journal import FRAME_ROWS
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


async def test_steps_for_others_are_no_progress() -> None:
    """A hop that only counts steps has told of no other rows, and has worked on none."""
    clock = VirtualClock()
    heartbeat = Heartbeat(clock)
    for steps in (1, 2):
        await clock.advance(1.0)
        heartbeat.hear(Pong(0, 0.0, 0.0, position=4, computed=2, steps=steps))
    assert (heartbeat.changed_at, heartbeat.stepped_at, heartbeat.worked_at) == (1.0, 2.0, 1.0)
    await clock.advance(1.0)
    heartbeat.hear(Pong(0, 0.0, 0.0, position=5, computed=2, steps=2))
    assert (heartbeat.changed_at, heartbeat.worked_at) == (3.0, 1.0)
    await clock.advance(1.0)
    heartbeat.hear(Pong(0, 0.0, 0.0, position=5, computed=5, steps=3))
    assert heartbeat.worked_at == 4.0
    await clock.advance(1.0)
    heartbeat.hear(Pong(0, 0.0, 0.0, position=6, computed=5, steps=3))
    assert heartbeat.worked_at == 5.0


async def test_rows_one_after_another_are_no_work() -> None:
    """A frame of them is, and so are the last ones; the first that come are something to work on."""
    clock = VirtualClock()
    heartbeat = Heartbeat(clock)
    end = 2 * FRAME_ROWS - 1
    told = [(1, 1.0), (2, 1.0), (FRAME_ROWS, 1.0), (FRAME_ROWS + 1, 4.0), (FRAME_ROWS + 2, 4.0), (end, 6.0)]
    for computed, worked_at in told:
        await clock.advance(1.0)
        heartbeat.hear(Pong(0, 0.0, 0.0, position=end, computed=computed))
        assert heartbeat.worked_at == worked_at


async def test_a_new_connection_excuses_a_hop_once() -> None:
    """A connection that breaks again and again makes no idle hop a working one."""
    clock = VirtualClock()
    heartbeat = Heartbeat(clock)
    heartbeat.hear(Pong(0, 0.0, 0.0, position=1))
    await clock.advance(10.0)
    heartbeat.reconnected()
    assert heartbeat.worked_at == heartbeat.changed_at == 10.0 - EXCUSED_S
    await clock.advance(10.0)
    heartbeat.reconnected()
    assert heartbeat.worked_at == 10.0 - EXCUSED_S
    assert heartbeat.heard_at == 20.0
    heartbeat.hear(Pong(0, 0.0, 0.0, position=1, computed=1))
    await clock.advance(10.0)
    heartbeat.reconnected()
    assert heartbeat.changed_at == 30.0 - EXCUSED_S


async def test_a_row_between_two_connections_is_no_excuse() -> None:
    """A frame is, and so are the last rows that it had."""
    clock = VirtualClock()
    heartbeat = Heartbeat(clock)
    rows = 2 * FRAME_ROWS
    heartbeat.hear(Pong(0, 0.0, 0.0, position=rows))
    for computed, excused in ((0, True), (1, False), (FRAME_ROWS, True), (FRAME_ROWS + 1, False), (rows, True)):
        heartbeat.hear(Pong(0, 0.0, 0.0, position=rows, computed=computed))
        await clock.advance(10.0)
        heartbeat.reconnected()
        assert (heartbeat.changed_at == clock.monotonic() - EXCUSED_S) == excused
