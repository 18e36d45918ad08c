"""Servers come and go while a session is open: substitutes, waiting, standing by, draining, bridging, fencing."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable

import pytest
import torch

from shoal.client.client import AsyncClient
from shoal.client.client_options import SessionOptions
from shoal.client.session.route_state import LinkStatus, ends_of
from shoal.client.session.session import Session
from shoal.engine.proof import numbers
from shoal.errors import NoRoute, ServerFull, ShoalError
from shoal.protocol.messages import LinkState
from shoal.server.serve_options import ServeOptions
from shoal.server.server import Server
from shoal.types import Span
from tests.swarms import Swarm, SwarmMaker, until

THIRDS = (Span(0, 2), Span(2, 4), Span(4, 6))
ROWS = numbers(5, 40, 48)


async def undisturbed(swarm: Swarm) -> torch.Tensor:
    """What comes out when nothing happens."""
    async with swarm.client() as client:
        async with client.session(await client.find_model(), max_tokens=64) as session:
            return await session.step(ROWS)


def server_of(swarm: Swarm, session: Session, index: int) -> Server:
    """Who serves a place in a session's route."""
    return next(server for server in swarm.servers if server.identity.peer == session.route[index].peer)


async def die(server: Server) -> None:
    """What others see of a server that ends without a word."""
    await server.__aexit__(None, None, None)


async def disturbed(
    swarm: Swarm, at: int, disturb: Callable[[Session], Awaitable[None]], **options: object
) -> tuple[torch.Tensor, Session]:
    """Prefill, then decode row by row; something happens before row `at`."""
    async with swarm.client() as client:
        asked = SessionOptions(max_tokens=64, **options)
        async with client.session(await client.find_model(), options=asked) as session:
            outputs = [await session.step(ROWS[:20])]
            for position in range(20, 40):
                if position == at:
                    await disturb(session)
                outputs.append(await session.step(ROWS[position : position + 1]))
            return torch.cat(outputs), session


@pytest.mark.parametrize("index", range(3))
async def test_a_substitute_computes_only_what_was_lost(swarm_of: SwarmMaker, index: int) -> None:
    """A server dies; another takes its blocks, and the others compute nothing twice."""
    async with swarm_of(*THIRDS, *THIRDS) as swarm:
        expected = await undisturbed(swarm)
        before = {server.identity.peer: server.worker.stats.rows for server in swarm.servers}
        victims: list[str] = []

        async def kill(session: Session) -> None:
            victims.append(session.route[index].peer)
            await die(server_of(swarm, session, index))

        output, session = await disturbed(swarm, 30, kill)
        assert torch.equal(output, expected)
        assert session.exact
        assert len(session.failovers) == 2
        for server in swarm.servers:
            computed = server.worker.stats.rows - before[server.identity.peer]
            in_route = server.identity.peer in {hop.peer for hop in session.route}
            assert computed == (30 if server.identity.peer in victims else 40 if in_route else 0)


@pytest.mark.parametrize("dtype", ["int8", "int4"])
async def test_a_substitute_rounds_keys_as_the_lost_one_did(swarm_of: SwarmMaker, dtype: str) -> None:
    """Its codes of turned keys are those that were lost, although it gets in one go what came row by row."""
    async with swarm_of(*THIRDS, *THIRDS, kv_dtype=dtype) as swarm:
        expected = await undisturbed(swarm)

        async def kill(session: Session) -> None:
            await die(server_of(swarm, session, 1))

        output, session = await disturbed(swarm, 30, kill)
        assert torch.equal(output, expected)
        assert session.exact
        assert session.failovers


async def test_several_substitutes_for_one_span(swarm_of: SwarmMaker) -> None:
    """Where no single server holds the lost blocks, several do together."""
    async with swarm_of(Span(0, 4), Span(4, 6)) as swarm:
        expected = await undisturbed(swarm)

        async def replace(session: Session) -> None:
            await swarm.join(Span(0, 1))
            await swarm.join(Span(1, 6))
            await die(swarm.servers[0])

        output, session = await disturbed(swarm, 25, replace)
        assert torch.equal(output, expected)
        assert [hop.span for hop in session.route] == [Span(0, 1), Span(1, 4), Span(4, 6)]


async def serve(config: ServeOptions, started: asyncio.Future[Server]) -> None:
    """A server in a task of its own: its error ends that."""
    async with Server(config) as server:
        started.set_result(server)
        await asyncio.Event().wait()


async def test_a_server_that_computes_no_more_is_waited_out(swarm_of: SwarmMaker) -> None:
    """It refuses, and ends soon; that ends no session as long as another server may come."""
    async with swarm_of(*THIRDS) as swarm:
        await die(swarm.servers[1])
        started: asyncio.Future[Server] = asyncio.get_running_loop().create_future()
        serving = asyncio.ensure_future(serve(swarm.servers[1].config, started))
        doomed = await started
        expected = await undisturbed(swarm)

        def fatal() -> None:
            raise KeyboardInterrupt

        async def stop_computing(session: Session) -> None:
            with pytest.raises(ShoalError, match="KeyboardInterrupt"):
                await doomed.worker.between_steps(fatal)

            async def join_later() -> None:
                await until(lambda: "2:4" in session.waiting)
                await swarm.join(Span(2, 4))

            joining.append(asyncio.ensure_future(join_later()))

        joining: list[asyncio.Task[None]] = []
        output, _ = await disturbed(swarm, 25, stop_computing)
        await asyncio.gather(*joining)
        assert torch.equal(output, expected)
        with pytest.raises(ShoalError, match="KeyboardInterrupt"):
            await serving


async def test_without_cover_a_step_waits_then_says_what_is_missing(swarm_of: SwarmMaker) -> None:
    """The error names the blocks; once a server is back the same step succeeds."""
    async with swarm_of(*THIRDS) as swarm, AsyncClient([swarm.servers[0].ticket], only="tls") as client:
        expected = await undisturbed(swarm)
        options = SessionOptions(max_tokens=64, patience_s=0.3)
        async with client.session(await client.find_model(), options=options) as session:
            first = await session.step(ROWS[:20])
            config = swarm.servers[1].config
            await die(swarm.servers[1])
            with pytest.raises(NoRoute, match="2:4"):
                await session.step(ROWS[20:])
            assert session.position == 20
            async with Server(config):
                rest = await session.step(ROWS[20:])
    assert torch.equal(torch.cat([first, rest]), expected)


async def test_who_stands_by_has_the_rows_already(swarm_of: SwarmMaker) -> None:
    """With redundancy a failure costs no replay: whoever stood by has computed every row once, and nobody any row twice."""
    async with swarm_of(*THIRDS, *THIRDS) as swarm:
        expected = await undisturbed(swarm)
        before = sum(server.worker.stats.rows for server in swarm.servers)

        async def kill(session: Session) -> None:
            await until(lambda: all(stage.ready for stage in session.supervisor.state.stages))
            await until(lambda: sum(server.worker.stats.rows for server in swarm.servers) - before == 6 * 30)
            await die(server_of(swarm, session, 1))

        output, session = await disturbed(swarm, 30, kill, redundancy=2)
        assert torch.equal(output, expected)
        assert sum(server.worker.stats.rows for server in swarm.servers) - before <= 6 * 40
        assert sum(heal.replayed_rows for heal in session.failovers) == 0


async def test_who_stands_by_out_of_reach_is_fed_through_the_client(swarm_of: SwarmMaker) -> None:
    """A hop and the one that follows the next do not reach each other: both links of the hop go on, nobody is lost."""
    async with swarm_of(*THIRDS, *THIRDS) as swarm:
        expected = await undisturbed(swarm)

        async def split(session: Session) -> None:
            supervisor = session.supervisor
            await until(lambda: all(stage.ready for stage in supervisor.state.stages) and supervisor.state.whole)
            first, second = supervisor.state.stages[:2]
            ends = ends_of(first.primary, second.standbys[0], follows=True)

            def link() -> LinkStatus:
                return next(link for link in supervisor.state.links if link.ends == ends)

            (sender,) = server_of(swarm, session, 0).sessions
            sender.report(LinkState(link().generation, "down"))
            await until(lambda: link().made and link().through_client)
            await until(lambda: supervisor.state.stages[1].standbys[0].progress.computed >= 25)
            await die(server_of(swarm, session, 1))

        output, session = await disturbed(swarm, 30, split, redundancy=2)
        assert torch.equal(output, expected)
        assert sum(heal.replayed_rows for heal in session.failovers) == 0
        assert len([heal for heal in session.failovers if heal.lost]) <= 1


async def test_a_server_that_drains_loses_nothing(swarm_of: SwarmMaker) -> None:
    """It takes no new sessions, its session moves to one that has caught up, and then it has none."""
    async with swarm_of(*THIRDS, *THIRDS) as swarm:
        expected = await undisturbed(swarm)
        left: list[int] = []

        async def drain(session: Session) -> None:
            leaver = server_of(swarm, session, 1)
            left.append(await leaver.drain(10.0))
            assert leaver.record.draining
            assert leaver.identity.peer not in {hop.peer for hop in session.route}

        output, session = await disturbed(swarm, 30, drain)
        assert left == [0]
        assert torch.equal(output, expected)
        assert sum(heal.replayed_rows for heal in session.failovers) == 0


async def test_a_draining_server_takes_no_new_session(swarm_of: SwarmMaker) -> None:
    """Whoever asks is told so."""
    async with swarm_of(*THIRDS) as swarm, swarm.client() as client:
        spec = await client.find_model()
        await swarm.servers[1].drain(0.0)
        with pytest.raises(ServerFull, match="leaving"):
            async with client.session(spec, max_tokens=8, wait_s=0.0):
                pass


async def test_the_swarm_goes_on_while_a_step_is_under_way(swarm_of: SwarmMaker) -> None:
    """A server dies in the middle of a long prefill."""
    rows = numbers(6, 400, 48)
    options = SessionOptions(max_tokens=400, prefill_chunk_rows=1)
    async with swarm_of(*THIRDS, *THIRDS) as swarm:
        async with swarm.client() as other:  # its pages are no help to the next one
            async with other.session(await other.find_model(), options=options) as session:
                expected = await session.step(rows)
        async with swarm.client() as client, client.session(await client.find_model(), options=options) as session:
            begun = await session.step(rows[:10])
            first, victim = server_of(swarm, session, 0), server_of(swarm, session, 1)
            gate = threading.Event()  # the first hop computes nothing, so that rows are missing when the next one dies
            held = asyncio.ensure_future(first.worker.between_steps(gate.wait))
            step = asyncio.ensure_future(session.step(rows[10:]))
            await die(victim)
            gate.set()
            assert torch.equal(torch.cat([begun, await step]), expected)
            await held
            assert len(session.failovers) == 2
