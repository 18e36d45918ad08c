"""The links of a session: who may feed a hop, what each side is told, and what becomes of two that do not reach each other."""

from __future__ import annotations

import asyncio

from shoal.client.session.hop_client import HopClient
from shoal.client.session.link_table import LinkTable
from shoal.errors import NetworkError
from shoal.links.link import LinkKey
from shoal.protocol.messages import LinkGrant
from shoal.types import Span
from tests.support.virtual_clock import VirtualClock
from tests.unit.client.session.hops import ME, FakeHop, ends_of, generations, terms_of

FIRST, SECOND = Span(0, 6), Span(6, 12)


class Bench:
    """A wiring, its tasks, and two hops."""

    def __init__(self) -> None:
        terms = terms_of()
        self.tasks: list[asyncio.Task[None]] = []
        self.clock = VirtualClock()
        self.link_table = LinkTable(terms, ends_of(terms), self._spawn, generations(), self.clock)
        self.one, self.two = FakeHop(FIRST, self.clock), FakeHop(SECOND, self.clock)
        self.between: LinkKey[HopClient] = LinkKey(self.one, self.two)
        self.changes = 0

    def _spawn(self, work: object) -> asyncio.Task[None]:
        self.tasks.append(asyncio.ensure_future(work))  # type: ignore[arg-type]
        return self.tasks[-1]

    def changed(self) -> None:
        """A link was made, or was not."""
        self.changes += 1

    async def join(self, *pairs: LinkKey[HopClient], bridged: bool = False) -> None:
        """Make links."""
        for pair in pairs:
            self.link_table.join(pair, bridged, self.changed)
        await self.clock.settle()

    async def __aenter__(self) -> Bench:
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


async def test_two_hops_are_told_of_each_other() -> None:
    """The receiver whom to let in, the sender where to go, with the same token and generation."""
    async with Bench() as bench:
        await bench.join(bench.between)
        (grant, follow), order = bench.two.admitted[0], bench.one.redirects[0]
        assert (grant.peer, follow) == (bench.one.peer, False)
        assert (order.link.peer, order.link.token, order.link.generation) == (
            bench.two.peer, grant.token, grant.generation,
        )  # fmt: skip
        assert (order.record, order.acceptance) == (bench.two.record.data, b"accepted")
        assert not order.elide
        assert bench.changes == 1
        assert bench.link_table.links_up[bench.between].tasks == ()  # nothing goes through here


async def test_the_ends_are_the_clients() -> None:
    """It feeds the first hop and dials the last, which leaves out rows that nobody wants back."""
    async with Bench() as bench:
        await bench.join(LinkKey(None, bench.one), LinkKey(bench.two, None))
        assert bench.one.admitted[0][0].peer == ME.peer
        order = bench.two.redirects[0]
        assert (order.link.peer, order.elide, order.record) == (ME.peer, True, b"")
        assert [len(wire.tasks) for wire in bench.link_table.links_up.values()] == [1, 1]


async def test_a_follower_is_told_that_it_only_follows() -> None:
    """So is the hop that feeds it."""
    async with Bench() as bench:
        await bench.join(LinkKey(bench.one, bench.two, follows=True))
        assert bench.two.admitted[0][1]
        assert bench.one.redirects[0].follow


async def test_two_that_do_not_reach_each_other_are_bridged() -> None:
    """Both talk to the client then, in a later generation; made anew, they are sent to each other again."""
    async with Bench() as bench:
        await bench.join(bench.between)
        bench.link_table.cut(bench.between)
        await bench.join(bench.between, bridged=True)
        assert bench.two.admitted[1][0].peer == ME.peer
        assert bench.one.redirects[1].link.peer == ME.peer
        assert len(bench.link_table.links_up[bench.between].tasks) == 2
        bench.link_table.cut(bench.between)
        assert all(task.cancelling() for task in bench.tasks[-2:])
        await bench.join(bench.between)
        assert bench.one.redirects[2].link.peer == bench.two.peer
        generations = [order.link.generation for order in bench.one.redirects]
        assert generations == sorted(set(generations))


async def test_the_grant_of_the_opening_is_used_for_the_client_alone() -> None:
    """A hop was opened with the client upstream: for another one it needs a fresh grant."""
    async with Bench() as bench:
        first = LinkGrant(99, ME.peer, bytes(16))
        bench.one._first_grant, bench.two._first_grant = (first, b"a"), (first, b"b")
        await bench.join(LinkKey(None, bench.one), bench.between)
        assert bench.one.admitted[0][0] == first
        assert bench.two.admitted[0][0] != first
        assert bench.two._first_grant is None


async def test_a_link_that_is_cut() -> None:
    """This side's tasks for it end, whether it was made or is still being made."""
    async with Bench() as bench:
        bench.two.frozen = True
        pairs = [LinkKey(None, bench.one), bench.between]
        await bench.join(*pairs)
        assert list(bench.link_table.joining) == [bench.between]
        for pair in pairs:
            bench.link_table.cut(pair)
        await bench.clock.settle()
        assert all(task.done() for task in bench.tasks)
        assert not bench.link_table.links_up
        assert not bench.link_table.joining


async def test_a_hop_that_is_lost_leaves_its_link_unmade() -> None:
    """What is called tells that something has changed; the hop's loss says what."""
    async with Bench() as bench:
        bench.two.fail(NetworkError("gone"))
        await bench.join(bench.between)
        assert bench.changes == 1
        assert not bench.link_table.links_up
        assert not bench.link_table.joining


async def test_a_mistake_here_is_not_swallowed() -> None:
    """What is no ShoalError ends the task with it, and with the task the session."""
    async with Bench() as bench:
        bench.two.record = None  # type: ignore[assignment]
        await bench.join(bench.between)
        assert isinstance(bench.tasks[0].exception(), AttributeError)
