"""Servers move to other blocks: sessions go on, every block stays served, and what cannot be done is undone."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
import torch

from shoal.errors import CheckpointError
from shoal.server.hosting import span_host
from shoal.server.serve_options import ServeOptions
from shoal.server.server import Server
from shoal.types import Span
from tests.integration.test_healing import ROWS, die, disturbed, server_of, undisturbed
from tests.support.virtual_clock import FastClock
from tests.swarms import NUM_BLOCKS, SwarmMaker, until

FIRST, SECOND = Span(0, 3), Span(3, 6)
FAST = FastClock(60.0)


def served(servers: list[Server]) -> set[int]:
    """Blocks through which sessions can go."""
    return {block for server in servers if server.serving for block in server.record.span.blocks()}


def freely(model: Path, *near: Server) -> Server:
    """A server that chooses three blocks, and moves; a minute of its judgement is a second."""
    return Server(
        ServeOptions(
            model=str(model),
            num_blocks=3,
            peers=tuple(server.ticket for server in near),
            transport="tls",
            memory_bytes=128 << 20,
        ),
        move_clock=FAST,
    )


async def healed(servers: list[Server], never_lost: Span) -> None:
    """Wait until every block is served and nobody plans a move; some blocks are served all the time."""

    def settled() -> bool:
        assert served(servers) >= set(never_lost.blocks())
        moving = [server.rebalancing for server in servers if server.rebalancing is not None]
        return served(servers) == set(range(NUM_BLOCKS)) and all(one.rebalancer.announced is None for one in moving)

    await until(settled, timeout_s=30.0)


async def test_a_session_goes_on_while_its_server_moves(swarm_of: SwarmMaker) -> None:
    """The hop hands over to a server that follows, and then serves other blocks; nobody was lost, the rows are the same."""
    async with swarm_of(FIRST, SECOND, FIRST) as swarm:
        expected = await undisturbed(swarm)
        moves: list[asyncio.Task[bool]] = []

        async def move(session: object) -> None:
            server = server_of(swarm, session, 0)  # type: ignore[arg-type]  # the session
            moves.append(asyncio.ensure_future(server.span_host.move(SECOND)))
            await until(lambda: not server.serving)

        outputs, session = await disturbed(swarm, 25, move)
        assert torch.equal(outputs, expected)
        assert await moves[0]
        assert not any(heal.lost for heal in session.failovers)
        assert sorted(str(server.record.span) for server in swarm.servers) == ["0:3", "3:6", "3:6"]
        assert torch.equal(await undisturbed(swarm), expected)


async def test_a_server_whose_sessions_cannot_leave_stays(swarm_of: SwarmMaker) -> None:
    """Nobody else has its blocks: the move is called off, and both the session and the server go on."""
    async with swarm_of(FIRST, SECOND) as swarm:
        expected = await undisturbed(swarm)

        async def move(session: object) -> None:
            assert not await swarm.servers[0].span_host.move(SECOND, deadline_s=0.3)

        outputs, session = await disturbed(swarm, 25, move)
        assert torch.equal(outputs, expected)
        assert len(session.failovers) == 1
        assert swarm.servers[0].serving
        assert swarm.servers[0].record.next_span is None
        assert torch.equal(await undisturbed(swarm), expected)


async def test_blocks_that_cannot_be_loaded(swarm_of: SwarmMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server serves again what it served before; when that fails too it says so, and leaves."""
    load, broken = span_host.load, [SECOND]

    def failing(config: ServeOptions, source: object, span: Span, progress: object) -> object:
        if span in broken:
            raise CheckpointError(f"blocks {span} are damaged")
        return load(config, source, span, progress)  # type: ignore[arg-type]  # passed on as they came

    with pytest.raises(CheckpointError, match="0:3 are damaged"):
        async with swarm_of(FIRST, SECOND) as swarm:
            expected = await undisturbed(swarm)
            monkeypatch.setattr(span_host, "load", failing)
            assert not await swarm.servers[0].span_host.move(SECOND)
            assert swarm.servers[0].serving
            assert swarm.servers[0].record.span == FIRST
            assert torch.equal(await undisturbed(swarm), expected)
            broken.append(FIRST)
            with pytest.raises(CheckpointError, match="0:3 are damaged"):
                await swarm.servers[0].span_host.move(SECOND)
            await asyncio.sleep(10)  # the server ends this body


async def test_a_pinned_server_never_moves(swarm_of: SwarmMaker) -> None:
    """Who was given its blocks by its owner does not judge."""
    async with swarm_of(FIRST) as swarm:
        assert swarm.servers[0].rebalancing is None


async def test_the_last_server_of_some_blocks_dies(swarm_of: SwarmMaker, tiny_model: Path) -> None:
    """A server moves there, though the dead one's record says that it lives; the blocks that it leaves stay served."""
    async with swarm_of(FIRST, SECOND) as swarm, freely(tiny_model, *swarm.servers) as free:
        await free.span_host.move(FIRST)
        expected = await undisturbed(swarm)
        await die(swarm.servers.pop(1))
        live = [swarm.servers[0], free]
        await healed(live, FIRST)
        assert free.record.span == SECOND
        assert free.rebalancing is not None
        assert free.rebalancing.moves == 1
        assert torch.equal(await undisturbed(swarm), expected)


async def test_the_last_two_holders_want_to_move_at_once(swarm_of: SwarmMaker, tiny_model: Path) -> None:
    """Both have announced it; exactly one goes, in whatever order they look."""
    async with swarm_of(SECOND) as swarm:
        async with freely(tiny_model, swarm.servers[0]) as one, freely(tiny_model, swarm.servers[0], one) as other:
            for server in (one, other):
                await server.span_host.move(FIRST)
            await die(swarm.servers[0])
            assert one.rebalancing is not None
            assert other.rebalancing is not None
            await asyncio.gather(one.rebalancing.announce(SECOND), other.rebalancing.announce(SECOND))
            await healed([one, other], FIRST)
            assert one.rebalancing.moves + other.rebalancing.moves == 1


async def test_who_joins_says_so_before_it_has_loaded(swarm_of: SwarmMaker, tiny_model: Path) -> None:
    """Others count its blocks as taken while it loads them, and lead no session to it."""
    async with swarm_of(FIRST) as swarm:
        loading, go_on = threading.Event(), threading.Event()

        def progress(what: str, done: int, total: int) -> None:
            if what == "proving the arithmetic":
                loading.set()
                go_on.wait(10.0)

        config = ServeOptions(model=str(tiny_model), num_blocks=3, peers=(swarm.ticket,), transport="tls")
        joiner = Server(config, progress)
        starting = asyncio.ensure_future(joiner.__aenter__())
        try:
            await until(loading.is_set)
            await until(lambda: swarm.servers[0].directory.get(joiner.identity.peer) is not None)
            signed = swarm.servers[0].directory.get(joiner.identity.peer)
            assert signed is not None
            assert signed.record.draining
            assert signed.record.next_span == SECOND
        finally:
            go_on.set()
            await starting
        try:
            assert joiner.record.span == SECOND
            assert not joiner.record.draining
        finally:
            await joiner.__aexit__(None, None, None)


async def test_who_joins_asks_before_it_chooses(swarm_of: SwarmMaker, tiny_model: Path) -> None:
    """A server has died, and its record says that it serves: its blocks are chosen."""
    async with swarm_of(FIRST, SECOND) as swarm:
        await die(swarm.servers.pop(1))
        config = ServeOptions(model=str(tiny_model), num_blocks=3, peers=(swarm.ticket,), transport="tls")
        async with Server(config) as joiner:
            assert joiner.record.span == SECOND


async def test_neighbours_are_measured(swarm_of: SwarmMaker) -> None:
    """A record tells the round trips to servers of the next blocks, and to nobody else."""
    async with swarm_of(FIRST, SECOND, SECOND) as swarm:
        first = swarm.servers[0]
        await until(lambda: len(first.directory.records()) == 3)
        await first.span_host.look_around()
        first.span_host.announce()
        told = dict(first.record.round_trips)
        assert set(told) == {server.identity.peer for server in swarm.servers[1:]}
        assert all(0 < seconds < 3 for seconds in told.values())


async def test_a_client_whose_records_are_old(swarm_of: SwarmMaker) -> None:
    """The only server that it knows for some blocks has moved: it asks the swarm and takes another one."""
    async with swarm_of(FIRST, SECOND) as swarm:
        expected = await undisturbed(swarm)
        async with swarm.client() as client:
            spec = await client.find_model()
            newer = await swarm.join(FIRST)
            assert newer.identity.peer not in {record.peer for record in client.records()}
            assert await swarm.servers[0].span_host.move(SECOND)
            async with client.session(spec, max_tokens=64) as session:
                assert torch.equal(await session.step(ROWS), expected)
                assert session.route[0].peer == newer.identity.peer
