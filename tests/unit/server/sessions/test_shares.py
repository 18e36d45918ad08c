"""Who gets a session, and who makes room for it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import ServerFull
from shoal.server.accounts import Account
from shoal.server.sessions.shares import IDLE_S, AccountUse, Amount, Shares
from shoal.types import PeerId
from tests.support.virtual_clock import VirtualClock

A, B, C = (Account(f"10.0.0.{last}") for last in (1, 2, 3))
ONE, TWO = PeerId("01" * 32), PeerId("02" * 32)


class World:
    """Shares of a server of four sessions and 100 pages; each session is named by a number."""

    def __init__(self, sessions: int = 4, pages: int = 100) -> None:
        self.clock = VirtualClock()
        self.shares = Shares(Amount(sessions, pages), self.clock)
        self.number = 0

    def open(self, account: Account, pages: int = 1, key: PeerId = ONE, computes: bool = False) -> list[int]:
        """One more session; the numbers of those that make room."""
        self.number += 1
        leaving = self.shares.open(bytes([self.number]), account, key, pages)
        if computes:
            self.shares.computes(bytes([self.number]))
        return [one[0] for one in leaving]


def test_a_client_alone_takes_all() -> None:
    """Nobody is kept from what no other wants; when there is no more, it has its share."""
    world = World()
    assert [world.open(A) for _ in range(4)] == [[]] * 4
    with pytest.raises(ServerFull, match="all 4 sessions are taken"):
        world.open(A)


def test_whoever_has_less_gets_room() -> None:
    """Up to an equal share and not beyond, from the one that has most."""
    world = World()
    for account in (A, A, A, B):
        world.open(account, computes=True)
    assert world.open(C) == [1]
    with pytest.raises(ServerFull):
        world.open(B)
    world.shares.close(bytes([4]))
    assert world.open(B) == []


async def test_what_does_not_compute_makes_room_first() -> None:
    """Sessions without a client, then those without rows, then those that have been idle, each before one that computes."""
    world = World(sessions=6)
    for computes in (True, True, True, False, False):
        world.open(A, computes=computes)
    await world.clock.advance(IDLE_S + 1)
    world.shares.computes(bytes([1]))
    world.shares.computes(bytes([2]))
    world.open(A, computes=True)
    world.shares.attend(bytes([5]), attended=False)
    assert [world.open(Account(f"10.0.1.{last}")) for last in range(4)] == [[5], [3], [4], [1]]


def test_a_client_within_its_share_keeps_what_it_has() -> None:
    """Its only session is safe from any number of others, as long as it is no larger than an equal share."""
    world = World()
    world.open(A)
    for last in range(10, 13):
        world.open(Account(f"10.0.0.{last}"))
    for last in range(20, 40):
        with pytest.raises(ServerFull):
            world.open(Account(f"10.0.0.{last}"))
    assert world.shares.use(A).has == Amount(1, 1)


def test_pages_are_shared_like_sessions() -> None:
    """What is missing counts: somebody with few sessions may have most of the cache."""
    world = World(sessions=64)
    world.open(A, pages=70)
    world.open(B, pages=20)
    world.open(B, pages=5)
    assert world.open(C, pages=30) == [1]
    with pytest.raises(ServerFull, match="60 pages of the cache were asked for, and 45 are free"):
        world.open(A, pages=60)
    with pytest.raises(ServerFull):
        world.open(A, pages=101)


def test_several_make_room_for_one() -> None:
    """As many as it takes, and none when that is not enough."""
    world = World(sessions=64)
    for _ in range(10):
        world.open(A, pages=10)
    assert world.open(B, pages=50) == [1, 2, 3, 4, 5]
    with pytest.raises(ServerFull):
        world.open(B, pages=1)
    assert world.shares.use(B).has == Amount(1, 50)


def test_keys_share_their_address() -> None:
    """A key behind the same address gets as much as the others have; many keys take nothing from other addresses."""
    world = World()
    for _ in range(4):
        world.open(A, key=ONE)
    assert world.open(A, key=TWO) == [1]
    assert world.open(A, key=TWO) == [2]
    with pytest.raises(ServerFull):
        world.open(A, key=TWO)
    assert world.open(B) == [3]
    assert world.open(B) == [5]
    with pytest.raises(ServerFull):
        world.open(A, key=PeerId("03" * 32))


def test_a_raised_share() -> None:
    """Three times a stranger's: three of four sessions."""
    world = World()
    gateway = Account("gateway", 3)
    for _ in range(4):
        world.open(gateway)
    assert world.open(B) == [1]
    with pytest.raises(ServerFull):
        world.open(B)
    assert world.shares.use(gateway) == AccountUse(Amount(3, 3), Amount(3, 75))
    assert (world.shares.num_accounts, world.shares.displaced) == (2, 1)


asks = st.tuples(st.sampled_from(range(6)), st.sampled_from((ONE, TWO)), st.integers(1, 40), st.booleans())


@given(st.lists(asks, max_size=60), st.integers(1, 8))
def test_never_more_than_there_is(asked: list[tuple[int, PeerId, int, bool]], sessions: int) -> None:
    """Nothing is promised twice, and whoever would stay within an equal share is never refused."""
    clock = VirtualClock()
    shares = Shares(Amount(sessions, 100), clock)
    held: dict[bytes, int] = {}
    for number, (last, key, pages, computes) in enumerate(asked):
        account, session = Account(f"10.0.0.{last}", 1 + last % 2), number.to_bytes(2, "big")
        use = shares.use(account)
        within = use.has.sessions + 1 <= use.equal.sessions and use.has.pages + pages <= use.equal.pages
        try:
            leaving = shares.open(session, account, key, pages)
        except ServerFull:
            assert not within
            continue
        for one in leaving:
            del held[one]
        held[session] = pages
        if computes:
            shares.computes(session)
        assert len(held) <= sessions
        assert sum(held.values()) <= 100


def test_the_greediest() -> None:
    """Those with most come first, of sessions or of pages, as times of what they may have."""
    world = World(sessions=10)
    raised = Account("gateway", 10)
    for account, pages in ((A, 1), (A, 1), (B, 60), (C, 1), *[(raised, 1)] * 4):
        world.open(account, pages)
    assert world.shares.greediest(3) == [B.name, A.name, C.name]
    assert world.shares.account_of(bytes([3])) == B.name
    assert world.shares.account_of(b"none") == ""
