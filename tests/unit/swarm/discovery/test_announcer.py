"""A server that stays findable: when it announces, what it says, and how it looks for others."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import pytest

from shoal.errors import NetworkError
from shoal.swarm.directory.directory import Directory
from shoal.swarm.discovery.announcer import ANNOUNCE_S, EARLY_S, LOOK_S, Announcer
from shoal.swarm.discovery.discovery import Contact, Presence
from shoal.swarm.discovery.discovery_options import Discoveries, DiscoveryOptions
from shoal.swarm.discovery.hello import ask_hello
from shoal.swarm.identity import Identity
from shoal.transport.dialler import Dialler
from tests.records import FINGERPRINT, signed_record
from tests.support.virtual_clock import VirtualClock

ME = Identity.generate()
RECORD = signed_record(ME)


@pytest.fixture(autouse=True)
def fresh_record() -> None:
    """A record lives for five minutes, and all tests together may take longer."""
    globals()["RECORD"] = signed_record(ME)


class Board:
    """A discovery that writes down when and what was announced, and fails when told to."""

    name = "board"

    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock
        self.told: list[tuple[float, Presence]] = []
        self.looked: list[float] = []
        self.closed = False
        self.broken = False

    async def announce(self, presence: Presence) -> None:
        """Written down."""
        self.told.append((self.clock.monotonic(), presence))
        if self.broken:
            raise NetworkError("the board is away")

    async def find(self) -> AsyncGenerator[Contact, None]:
        """Nobody."""
        self.looked.append(self.clock.monotonic())
        for contact in ():
            yield contact

    async def close(self) -> None:
        """Noted."""
        self.closed = True


def announcer(clock: VirtualClock, board: Board, notices: list[str], mapper: Any = None) -> Announcer:
    """An announcer on this board, with a hello on loopback."""
    discoveries = Discoveries(DiscoveryOptions(interface="127.0.0.1"), FINGERPRINT, clock)
    discoveries.all = (board,)
    discoveries.mapper = mapper
    finder = discoveries.finder(Directory(clock), Dialler([], clock), ME.peer)
    return Announcer(discoveries, finder, lambda: RECORD, notices.append, clock)


async def test_announcements_come_early_and_then_now_and_then() -> None:
    """At once, twice soon, then every ten minutes; each names the record's addresses and the hello's port, which answers."""
    clock, notices = VirtualClock(), list[str]()
    board = Board(clock)
    async with announcer(clock, board, notices) as one:
        await one.start(lambda: None)
        await clock.advance(ANNOUNCE_S * 2 + sum(EARLY_S))
        assert [at for at, _ in board.told] == [0, 5, 35, 635, 1235]
        presence = board.told[0][1]
        assert presence == Presence(ME.peer, FINGERPRINT, RECORD.record.addresses, presence.hello_port)
        assert await ask_hello("127.0.0.1", presence.hello_port) == RECORD
        assert one.reachable(("tls://127.0.0.1:1",)) == ("tls://127.0.0.1:1",)
    assert board.closed
    assert notices == []


async def test_failures_are_told_once_and_tried_again_soon() -> None:
    """A board that is away is named once, asked again every half minute, and named again when it breaks again."""
    clock, notices = VirtualClock(), list[str]()
    board = Board(clock)
    board.broken = True
    async with announcer(clock, board, notices) as one:
        await one.start(lambda: None)
        await clock.advance(61)
        assert [at for at, _ in board.told] == [0, 30, 60]
        assert notices == ["not announced on the board: the board is away"]
        board.broken = False
        await clock.advance(30)
        board.broken = True
        await clock.advance(ANNOUNCE_S)
        assert len(notices) == 2


async def test_a_server_alone_looks_less_and_less_often() -> None:
    """The pauses between searches double up to ten minutes."""
    clock = VirtualClock()
    board = Board(clock)
    async with announcer(clock, board, []) as one:
        await one.start(lambda: None)
        await clock.advance(4 * ANNOUNCE_S)
        pauses = [later - earlier for earlier, later in zip(board.looked, board.looked[1:], strict=False)]
        assert pauses[:4] == [LOOK_S, 2 * LOOK_S, 4 * LOOK_S, 8 * LOOK_S]
        assert pauses[-1] == ANNOUNCE_S
        assert not await one.look()


async def test_ports_that_the_router_opened_are_announced() -> None:
    """The record is renewed and names them first, and the announced hello port is the router's."""

    class Mapper:
        problem = ""
        asked: tuple[str, ...] = ()

        async def map(self, addresses: tuple[str, ...]) -> None:
            self.asked = addresses

        def outside(self, addresses: tuple[str, ...]) -> tuple[str, ...]:
            return ("tls://203.0.113.9:4433",)

        def outside_port(self, protocol: str, port: int) -> int:
            return 7

    clock, renewed, mapper = VirtualClock(), list[bool](), Mapper()
    board = Board(clock)
    async with announcer(clock, board, [], mapper) as one:
        await one.start(lambda: renewed.append(True))
        await clock.settle()
        assert mapper.asked[:-1] == RECORD.record.addresses
        assert mapper.asked[-1].startswith("hello://127.0.0.1:")
        assert renewed == [True]
        assert board.told[0][1].hello_port == 7
        assert one.reachable(("tls://10.0.0.1:1",) * 9) == ("tls://203.0.113.9:4433", "tls://10.0.0.1:1")


async def test_nothing_is_done_unasked() -> None:
    """Without discoveries nothing listens and nothing is looked for."""
    clock = VirtualClock()
    discoveries = Discoveries(DiscoveryOptions(), None, clock)
    finder = discoveries.finder(Directory(clock), Dialler([], clock))
    async with Announcer(discoveries, finder, lambda: RECORD, lambda text: None, clock) as one:
        await one.start(lambda: None)
        assert one._hello.port == 0
        assert not await one.look()
