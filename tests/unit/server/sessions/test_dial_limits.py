"""How often clients may have a server dial, by key, by address and in all."""

from __future__ import annotations

import pytest

from shoal.server.sessions.dial_limits import (
    DIALS_AT_ONCE,
    FAILED_AT_ONCE,
    FAILED_PER_S,
    SERVER_SOURCES,
    SOURCE_CLIENTS,
    DialLimits,
    TooManyDials,
)
from shoal.types import PeerId
from tests.support.virtual_clock import VirtualClock

SOURCE = "192.0.2.1"


def key(number: int) -> PeerId:
    """One of many keys."""
    return PeerId(f"{number:064x}")


def refused(limits: DialLimits, client: PeerId, source: str) -> bool:
    """Whether one more is refused."""
    try:
        limits.begin(client, source)
    except TooManyDials as error:
        assert error.retry_after > 0
        return True
    return False


async def test_fresh_keys_of_one_address_have_no_more_dials_that_fail() -> None:
    """Another address has its own; all together have a few addresses' worth. What was used comes back with time."""
    clock = VirtualClock()
    limits = DialLimits(clock)
    for number in range(FAILED_AT_ONCE):
        limits.begin(key(number), SOURCE)
    assert refused(limits, key(FAILED_AT_ONCE), SOURCE)
    for number in range(FAILED_AT_ONCE * (SERVER_SOURCES - 1)):
        limits.begin(key(number), f"198.51.100.{number}")
    assert refused(limits, key(1), "203.0.113.1")
    await clock.advance(1.0)
    for number in range(FAILED_PER_S):
        limits.begin(key(number), SOURCE)
    assert refused(limits, key(0), SOURCE)


def test_answered_dials_are_limited_by_key_and_by_address() -> None:
    """A client that opens many sessions has room for all their links."""
    limits = DialLimits(VirtualClock())
    for number in range(DIALS_AT_ONCE * SOURCE_CLIENTS):
        limits.begin(key(number // DIALS_AT_ONCE), SOURCE)
        limits.answered(SOURCE)
        assert (number + 1) % DIALS_AT_ONCE or refused(limits, key(number // DIALS_AT_ONCE), SOURCE)
    assert refused(limits, key(SOURCE_CLIENTS), SOURCE)
    limits.begin(key(SOURCE_CLIENTS), "198.51.100.1")


def test_a_refused_dial_uses_nothing() -> None:
    """Neither here nor in any other limit."""
    limits = DialLimits(VirtualClock())
    for _ in range(DIALS_AT_ONCE):
        limits.begin(key(1), SOURCE)
        limits.answered(SOURCE)
    for _ in range(2 * DIALS_AT_ONCE):
        with pytest.raises(TooManyDials, match="one client"):
            limits.begin(key(1), SOURCE)
    for _ in range(DIALS_AT_ONCE):
        limits.begin(key(2), SOURCE)
        limits.answered(SOURCE)


async def test_dials_are_told() -> None:
    """Those that count now, of all clients and of one address."""
    clock = VirtualClock()
    limits = DialLimits(clock)
    for number in range(30):
        limits.begin(key(number), SOURCE if number < 20 else "198.51.100.1")
    assert (limits.made, limits.made_for(SOURCE), limits.made_for("203.0.113.1")) == (30, 20, 0)
    await clock.advance(60.0)
    assert (limits.made, limits.made_for(SOURCE)) == (0, 0)
