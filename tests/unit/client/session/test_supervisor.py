"""A chain keeps its links made while its hops come and go."""

from __future__ import annotations

import asyncio

from shoal.errors import NetworkError
from shoal.types import Span
from tests.swarms import until
from tests.unit.client.session.hops import FakeHop, chain_of

FIRST, SECOND = Span(0, 6), Span(6, 12)


async def test_hops_are_joined_from_end_to_end() -> None:
    """The client feeds the first, each is told of the next, and the last answers the client."""
    one, two = FakeHop(FIRST), FakeHop(SECOND)
    supervisor = chain_of([one, two])
    await supervisor.open(0.0)
    assert [pair[:2] for pair in supervisor.link_table.links_up] == [(None, one), (one, two), (two, None)]
    assert one.redirects[0].record == two.record.data
    assert two.redirects[0].elide
    await supervisor.close()
    assert one.ended
    assert two.ended


async def test_a_frozen_hop_holds_up_its_own_links_only() -> None:
    """While one hop does not answer an order, another dies: it is replaced and joined meanwhile."""
    one, two, standing_by, substitute = FakeHop(FIRST), FakeHop(SECOND), FakeHop(FIRST), FakeHop(SECOND)
    supervisor = chain_of([one, two], [standing_by, substitute], redundancy=2)
    await supervisor.open(0.0)
    standing_by.frozen = True
    supervisor.start(60.0)
    try:
        await until(lambda: standing_by.asked > 0)
        two.fail(NetworkError("gone"))
        await until(lambda: (one, substitute, False) in supervisor.link_table.links_up)
        assert standing_by.lost is None
        assert standing_by.admitted == []
    finally:
        await supervisor.close()


async def test_a_link_that_is_not_wanted_any_more_is_not_waited_for() -> None:
    """A hop that died while its neighbour was told of it is gone from the links being made."""
    one, two, substitute = FakeHop(FIRST), FakeHop(SECOND), FakeHop(SECOND)
    supervisor = chain_of([one, two], [substitute])
    two.frozen = True
    opening = asyncio.create_task(supervisor.open(0.0))
    await until(lambda: two.asked > 0)
    two.fail(NetworkError("gone"))
    await opening
    assert set(supervisor.link_table.links_up) == {
        (None, one, False),
        (one, substitute, False),
        (substitute, None, False),
    }
    await supervisor.close()
