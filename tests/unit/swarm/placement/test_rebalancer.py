"""When a server moves, by example; tests/property/test_placement.py lets whole swarms follow the rule."""

from __future__ import annotations

import random

import msgspec
import pytest

from shoal.swarm.directory.records import KEY_DIGITS
from shoal.swarm.placement import swarm_load
from shoal.swarm.placement.block_inventory import BlockInventory
from shoal.swarm.placement.rebalancer import (
    FAILED_REST_S,
    FETCH_RETRY_S,
    LOOK_S,
    NOTICE_S,
    PATIENCE_S,
    PAUSE_S,
    REST_S,
    TRUST_S,
    WATCH_S,
    Announce,
    Ask,
    Move,
    Publish,
    Rebalancer,
    Withdraw,
)
from shoal.swarm.placement.swarm_load import ServerLoad, SwarmLoad
from shoal.types import PeerId, Span
from tests.loads import a_load, a_rebalancer, decide, moving, some_loads

FIRST, SECOND = Span(0, 4), Span(4, 8)
CROWD = [*(a_load(name, 0, 4) for name in "abcde"), a_load("f", 4, 8, max_blocks=0)]
"""Five servers on the first half of the blocks, and one on the other."""


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Swarms follow no plan."""
    monkeypatch.setattr(swarm_load, "MAX_PLANNED_SERVERS", 0)


def crowd(**changes: ServerLoad) -> SwarmLoad:
    """CROWD, with other servers of these names."""
    return SwarmLoad(8, [changes.get(one.peer[0], one) for one in CROWD])


def looked(name: str, swarm: SwarmLoad) -> tuple[Rebalancer, float]:
    """A server that has begun to decide, and when it looks for the first time."""
    rebalancer = a_rebalancer(PeerId(name * 64), swarm.num_blocks)
    waits = decide(rebalancer, swarm, 0.0)
    assert waits.action is None
    assert 0 < waits.wake_at <= LOOK_S
    return rebalancer, waits.wake_at


def announced(name: str, goal: Span = SECOND, shared: bool = False) -> Rebalancer:
    """A server that has just announced a move, at 0 seconds."""
    rebalancer = a_rebalancer(PeerId(name * 64), 8)
    rebalancer.announce(goal, shared, 0.0)
    return rebalancer


@pytest.mark.usefixtures("large")
def test_a_move_is_announced_waited_for_and_made() -> None:
    """For a clear gain, after two rounds of gossip, while others serve what it leaves; then it stays for long."""
    rebalancer, now = looked("c", crowd())
    assert isinstance(rebalancer.decide(crowd(), now).action, Ask)
    rebalancer.asked(now)
    assert rebalancer.decide(crowd(), now).action == Announce(SECOND)
    swarm = crowd(c=moving(CROWD[2], SECOND))
    assert decide(rebalancer, swarm, now + NOTICE_S - 0.1).action is None
    assert decide(rebalancer, swarm, now + NOTICE_S).action == Move(SECOND)
    rebalancer.moved(True, now + NOTICE_S)
    back = now + NOTICE_S + REST_S
    assert decide(rebalancer, crowd(), back - 0.1).action is None
    assert decide(rebalancer, crowd(), back + 2 * LOOK_S).action == Announce(SECOND)


@pytest.mark.usefixtures("large")
def test_a_small_gain_is_no_reason_to_move() -> None:
    """Two servers there, three here."""
    swarm = SwarmLoad(8, [a_load(name, *span) for name, span in zip("abcde", [(0, 4)] * 3 + [(4, 8)] * 2, strict=True)])
    rebalancer, now = looked("a", swarm)
    waits = decide(rebalancer, swarm, now)
    assert waits.action is None
    assert now + 0.75 * LOOK_S <= waits.wake_at <= now + 1.25 * LOOK_S


def test_blocks_are_on_the_disk_before_it_goes() -> None:
    """It fetches the goal's blocks, and a fetch that fails ends the announcement: others do not count on it for a while."""
    rebalancer = a_rebalancer(PeerId("c" * 64), 8, on_disk=FIRST)
    swarm = crowd(c=moving(CROWD[2], SECOND))
    rebalancer.announce(SECOND, False, 0.0)
    assert rebalancer.next_fetch(swarm, 0.0) == 4
    assert decide(rebalancer, swarm, NOTICE_S).action is None
    rebalancer.fetch_failed("the hub does not answer", 10.0)
    withdrawal = decide(rebalancer, swarm, 10.0).action
    assert isinstance(withdrawal, Withdraw)
    assert "the hub does not answer" in withdrawal.why
    assert not rebalancer.movable(9.0 + FAILED_REST_S)
    assert rebalancer.movable(10.0 + FAILED_REST_S)
    rebalancer.announce(SECOND, False, 20.0)
    assert rebalancer.next_fetch(swarm, 9.0 + FETCH_RETRY_S) is None
    assert rebalancer.next_fetch(swarm, 10.0 + FETCH_RETRY_S) == 4


def test_a_move_that_failed() -> None:
    """Others do not count on the server for a while, and it announces nothing meanwhile."""
    rebalancer = announced("c")
    rebalancer.moved(False, 10.0)
    assert rebalancer.announced is None
    assert not rebalancer.movable(9.0 + FAILED_REST_S)
    assert rebalancer.movable(10.0 + FAILED_REST_S)


def test_an_announced_move_is_withdrawn_when_others_were_first() -> None:
    """Servers that announced the same are counted where they go, and the gain is gone."""
    moved = {name: moving(one, SECOND) for name, one in zip("abc", CROWD, strict=False)}
    withdrawal = decide(announced("c"), crowd(**moved), NOTICE_S).action
    assert isinstance(withdrawal, Withdraw)
    assert "gain" in withdrawal.why


def test_of_two_that_clash_the_lower_id_yields() -> None:
    """The last two servers of some blocks: one withdraws, the other waits until it sees that, then goes; not for ever."""
    both = [moving(a_load(name, 0, 4), SECOND) for name in "ab"]
    others = [a_load("c", 4, 8)]
    swarm = SwarmLoad(8, [*both, *others])
    low, high = announced("a", shared=True), announced("b", shared=True)
    withdrawal = decide(low, swarm, NOTICE_S).action
    assert isinstance(withdrawal, Withdraw)
    assert "block 0" in withdrawal.why
    assert "block 0" in decide(high, swarm, NOTICE_S).why
    stays = SwarmLoad(8, [a_load("a", 0, 4), both[1], *others])
    assert decide(high, stays, NOTICE_S).action == Move(SECOND)
    assert isinstance(decide(announced("b", shared=True), swarm, NOTICE_S + PATIENCE_S).action, Withdraw)


def test_who_would_stay_is_asked_before_it_goes() -> None:
    """Only the servers that share its blocks."""
    swarm = crowd(c=moving(CROWD[2], SECOND))
    ask = announced("c").decide(swarm, NOTICE_S).action
    assert isinstance(ask, Ask)
    assert ask.peers is not None
    assert {peer[0] for peer in ask.peers} == set("abde")


@pytest.mark.usefixtures("large")
def test_the_last_server_of_a_block_stays() -> None:
    """However weak other blocks are, and a server that does not serve has nothing to decide."""
    swarm = SwarmLoad(8, [a_load("a", 0, 4, block_rows_per_s=1e4), a_load("b", 4, 8, block_rows_per_s=1.0)])
    for name in "ab":
        rebalancer, now = looked(name, swarm)
        assert decide(rebalancer, swarm, now).action is None
    gone = msgspec.structs.replace(a_load("a", 0, 4), serves=None)
    for mine in ([gone], []):
        assert decide(a_rebalancer(gone.peer, 8), SwarmLoad(8, mine), 0.0).action is None


@pytest.mark.usefixtures("large")
def test_a_server_whose_blocks_were_chosen_by_its_owner_stays() -> None:
    """Also where a move would be a clear gain."""
    swarm = crowd(c=a_load("c", 0, 4, max_blocks=0))
    rebalancer, now = looked("c", swarm)
    assert decide(rebalancer, swarm, now).action is None


def test_only_the_author_plans_and_only_on_news() -> None:
    """Others do not, and the author not twice for the same swarm; a departure is news, a joining server none."""
    loads = sorted(some_loads(12, 20, seed=0), key=lambda one: one.peer)
    loads[0] = msgspec.structs.replace(loads[0], max_blocks=0)
    swarm = SwarmLoad(12, loads)
    assert swarm.author == loads[0].peer
    author = a_rebalancer(swarm.author, 12)
    assert decide(a_rebalancer(loads[-1].peer, 12), swarm, 0.0).action is None
    publish = decide(author, swarm, 0.0).action
    assert isinstance(publish, Publish)
    told = [msgspec.structs.replace(one, plan=publish.plan) if one.peer == author.peer else one for one in loads]
    joining = msgspec.structs.replace(a_load("f", 0, 4, joining=True), serves=None)
    assert not isinstance(decide(author, SwarmLoad(12, [*told, joining]), 1.0).action, Publish)
    leavers = [one for one in told if one.peer != author.peer and one.peer[:KEY_DIGITS] not in dict(publish.plan)]
    fewer = SwarmLoad(12, [one for one in told if one not in leavers[:3]])
    assert isinstance(decide(author, fewer, 2.0).action, Publish)


def test_an_author_that_is_none_any_more_takes_its_plan_back() -> None:
    """Else its old plan would count again as soon as the servers before it are gone."""
    swarm = planned(CROWD, {"c": SECOND})
    earlier = a_load("0", 0, 4)
    superseded = SwarmLoad(8, [*swarm.servers.values(), earlier])
    assert superseded.author == earlier.peer
    assert decide(a_rebalancer(PeerId("a" * 64), 8), superseded, 0.0).action == Publish(())


def test_an_author_that_has_moved_plans_anew() -> None:
    """What it knew before it left is no reason to keep quiet."""
    loads = sorted(some_loads(12, 20, seed=0), key=lambda one: one.peer)
    swarm = SwarmLoad(12, loads)
    author = a_rebalancer(loads[0].peer, 12)
    publish = decide(author, swarm, 0.0).action
    assert isinstance(publish, Publish)
    author.moved(True, 1.0)
    assert decide(author, swarm, 1.0).action == publish


def test_the_author_and_the_next_ask_all() -> None:
    """Every WATCH_S; a third server does not."""
    swarm = SwarmLoad(8, CROWD)
    for name in "ab":
        rebalancer = a_rebalancer(PeerId(name * 64), 8)
        for now in (0.0, WATCH_S):
            ask = rebalancer.decide(swarm, now).action
            assert isinstance(ask, Ask)
            assert ask.peers is not None
            assert len(ask.peers) == 5
            rebalancer.asked(now)
            assert not isinstance(rebalancer.decide(swarm, now).action, Ask)
    assert a_rebalancer(PeerId("c" * 64), 8).decide(swarm, 0.0).action is None


def planned(loads: list[ServerLoad], goals: dict[str, Span]) -> SwarmLoad:
    """A swarm whose author has published where servers, by the first digit of their ids, should go."""
    plan = tuple((name * KEY_DIGITS, span) for name, span in goals.items())
    first = min(one.peer for one in loads)
    return SwarmLoad(8, [msgspec.structs.replace(one, plan=plan) if one.peer == first else one for one in loads])


def test_planned_servers_follow() -> None:
    """They announce the plan's goal as soon as its blocks are on their disks; the others announce nothing."""
    swarm = planned(CROWD, {"c": SECOND})
    assert decide(a_rebalancer(PeerId("c" * 64), 8), swarm, 0.0).action == Announce(SECOND)
    assert decide(a_rebalancer(PeerId("d" * 64), 8), swarm, 0.0).action is None
    bare = a_rebalancer(PeerId("c" * 64), 8, on_disk=FIRST)
    assert decide(bare, swarm, 0.0).action is None
    assert bare.next_fetch(swarm, 0.0) == 4
    bare.inventory.add(SECOND.blocks())
    assert decide(bare, swarm, 0.0).action == Announce(SECOND)


def test_after_a_planned_move_the_next_one_needs_no_rest() -> None:
    """A withdrawn one does."""
    swarm = planned(CROWD, {"c": SECOND})
    rebalancer = announced("c", shared=True)
    rebalancer.moved(True, 10.0)
    assert decide(rebalancer, swarm, 10.0).action == Announce(SECOND)
    alone = SwarmLoad(8, [moving(one, SECOND) if one.peer[0] in "bc" else one for one in CROWD if one.peer[0] in "bcf"])
    withdrawn_at = 10.0 + NOTICE_S + PATIENCE_S
    assert isinstance(decide(rebalancer, alone, withdrawn_at).action, Withdraw)
    assert decide(rebalancer, swarm, withdrawn_at).action is None
    assert decide(rebalancer, swarm, withdrawn_at + PAUSE_S).action == Announce(SECOND)


def test_a_plan_that_is_no_gain_is_not_followed() -> None:
    """The author says that all should crowd into the first blocks: no server does. Nor does the last one there go."""
    loads = [*(a_load(name, 0, 4) for name in "abc"), *(a_load(name, 4, 8) for name in "def")]
    swarm = planned(loads, {"d": FIRST, "e": FIRST})
    for name in "de":
        assert "use" in decide(a_rebalancer(PeerId(name * 64), 8), swarm, 0.0).why
    last = planned([*loads[:3], loads[5]], {"f": FIRST})
    assert "last" in decide(a_rebalancer(PeerId("f" * 64), 8), last, 0.0).why


def test_without_a_plan_servers_move_alone_after_a_while() -> None:
    """The author plans nothing: the others trust it for TRUST_S."""
    rebalancer, now = looked("c", crowd())
    first = now
    while (decision := decide(rebalancer, crowd(), now)).action is None:
        now = decision.wake_at
    assert decision.action == Announce(SECOND)
    assert first + TRUST_S <= now <= first + TRUST_S + 2 * LOOK_S


def test_blocks_are_fetched_ahead_where_a_plan_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The nearest first; in a larger swarm none."""
    inventory = BlockInventory(8, 6)
    inventory.add(FIRST.blocks())
    rebalancer = Rebalancer(PeerId("c" * 64), inventory, random.Random(0))
    assert rebalancer.next_fetch(crowd(), 0.0) == 4
    monkeypatch.setattr(swarm_load, "MAX_PLANNED_SERVERS", 0)
    assert rebalancer.next_fetch(crowd(), 0.0) is None
    rebalancer.announce(Span(4, 5), False, 0.0)
    assert rebalancer.next_fetch(crowd(), 0.0) == 4
    inventory.add([4])
    assert rebalancer.next_fetch(crowd(), 0.0) is None
