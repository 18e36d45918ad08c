"""What servers of a simulated swarm know of one another."""

from __future__ import annotations

import msgspec
import pytest

from shoal.swarm.placement import swarm_load
from shoal.types import PeerId, Span
from simulator import gossip_view
from simulator.gossip_view import GossipView
from tests.loads import a_load, moving

A, B = PeerId("a" * 64), PeerId("b" * 64)


@pytest.mark.parametrize("planned", [128, 1])
def test_news_are_known_with_the_next_tick(monkeypatch: pytest.MonkeyPatch, planned: int) -> None:
    """Servers that come, move and go, with a plan and without; nothing has changed where only the disk did."""
    for module in (swarm_load, gossip_view):
        monkeypatch.setattr(module, "MAX_PLANNED_SERVERS", planned)
    view = GossipView(8)
    view.tell(A, a_load("a", 0, 4))
    view.tell(B, a_load("b", 4, 8))
    assert list(view.swarm().servers) == []
    assert view.tick()
    assert set(view.swarm().servers) == {A, B}
    assert len(view) == 2
    view.tell(A, a_load("a", 0, 4, on_disk=(Span(0, 8),)))
    assert not view.tick()
    view.tell(A, moving(a_load("a", 0, 4), Span(4, 8)))
    assert view.tick()
    assert view.swarm().blocks.holders.tolist() == [0] * 4 + [2] * 4
    view.tell(B, None)
    assert view.tick()
    assert set(view.swarm().servers) == {A}


@pytest.mark.parametrize("planned", [128, 1])
def test_a_server_knows_its_own_record_at_once(monkeypatch: pytest.MonkeyPatch, planned: int) -> None:
    """Others learn it with the next tick; after that all see the same swarm."""
    for module in (swarm_load, gossip_view):
        monkeypatch.setattr(module, "MAX_PLANNED_SERVERS", planned)
    view = GossipView(8)
    loading = msgspec.structs.replace(a_load("b", 4, 8, joining=True), serves=None)
    for load in (a_load("a", 0, 4), loading, a_load("c", 0, 4)):
        view.tell(load.peer, load)
    view.tick()
    served = a_load("b", 4, 8)
    view.tell(B, served)
    assert view.swarm().servers[B].serves is None
    seen = view.swarm(own=served)
    assert seen.servers[B].serves == Span(4, 8)
    assert seen.committed.tolist() == [2] * 4 + [1] * 4
    assert set(view.swarm([A], served).servers) == {B, PeerId("c" * 64)}
    view.tick()
    assert view.swarm(own=served) is view.swarm()


def test_a_server_does_not_count_those_that_it_found_silent() -> None:
    """Others still do; a silent server that is not known any more does not matter."""
    view = GossipView(8)
    view.tell(A, a_load("a", 0, 4))
    view.tell(B, a_load("b", 4, 8))
    view.tick()
    assert set(view.swarm([B]).servers) == {A}
    assert view.swarm([B]).author == A
    assert set(view.swarm([PeerId("c" * 64)]).servers) == {A, B}
    assert view.swarm([PeerId("c" * 64)]) is view.swarm()
