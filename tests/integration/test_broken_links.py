"""Connections break and come back; the stream goes on, and nothing is lost or computed twice by mistake."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
import torch

from shoal.client.client_options import SessionOptions
from shoal.client.session.session import Session
from shoal.engine.proof import numbers
from shoal.protocol.messages import LinkState
from shoal.server.sessions.hop_session import HopSession
from shoal.types import Span
from tests.swarms import Swarm, SwarmMaker, until

THIRDS = (Span(0, 2), Span(2, 4), Span(4, 6))


def hops(swarm: Swarm) -> list[HopSession]:
    """The one session as each server has it."""
    return [next(iter(server.sessions)) for server in swarm.servers]


def cut_into(hop: int) -> Callable[[Session, list[HopSession]], None]:
    """Cuts the link into a hop, at its receiving end."""
    return lambda session, held: held[hop].row_receiver.detach()


def cut_out_of(hop: int) -> Callable[[Session, list[HopSession]], None]:
    """Cuts the link out of a hop, at its sending end."""
    return lambda session, held: held[hop].log.next.detach()


def cut_control(hop: int) -> Callable[[Session, list[HopSession]], None]:
    """Cuts the control channel to a hop."""

    def cut(session: Session, held: list[HopSession]) -> None:
        control = held[hop]._control
        if control is not None:  # it may be down still
            control.abort()

    return cut


CUTS = {
    "client to first": cut_into(0),
    "first to second": cut_out_of(0),
    "second to third": cut_into(2),
    "third to client": cut_out_of(2),
    "control of the second": cut_control(1),
}


@pytest.mark.parametrize("name", CUTS)
async def test_decoding_survives_a_cut(swarm_of: SwarmMaker, name: str) -> None:
    """Whatever link breaks before whichever step, the rows are the same."""
    rows = numbers(1, 24, 48)
    async with swarm_of(*THIRDS) as swarm, swarm.client() as client:
        spec = await client.find_model()
        async with client.session(spec, max_tokens=32) as session:
            expected = await session.step(rows)
        async with client.session(spec, max_tokens=32) as session:
            outputs = [await session.step(rows[:12])]
            await until(lambda: all(len(server.sessions) == 1 for server in swarm.servers))
            for position in range(12, 24):
                if position % 4 == 1:
                    CUTS[name](session, hops(swarm))
                outputs.append(await session.step(rows[position : position + 1]))
    assert torch.equal(torch.cat(outputs), expected)


@pytest.mark.parametrize("name", CUTS)
async def test_prefill_survives_a_cut(swarm_of: SwarmMaker, name: str) -> None:
    """A prefill whose link breaks while its chunks are under way comes out the same."""
    rows = numbers(2, 300, 48)
    options = SessionOptions(max_tokens=320, prefill_chunk_rows=16)
    async with swarm_of(*THIRDS) as swarm, swarm.client() as client:
        spec = await client.find_model()
        async with client.session(spec, options=options) as session:
            expected = await session.step(rows)
        await until(lambda: all(len(server.sessions) == 0 for server in swarm.servers))
        async with client.session(spec, options=options) as session:
            step = asyncio.ensure_future(session.step(rows))
            await until(lambda: all(len(server.sessions) == 1 for server in swarm.servers))
            for _ in range(3):
                seen = hops(swarm)[2].receiver.position
                await until(lambda seen=seen: step.done() or hops(swarm)[2].receiver.position > seen)
                CUTS[name](session, hops(swarm))
            assert torch.equal(await step, expected)


async def test_rows_that_a_journal_dropped_are_computed_again(swarm_of: SwarmMaker) -> None:
    """A hop that no longer has what its successor needs starts afresh, fed by the hop before it, which computes nothing."""
    rows = numbers(3, 60, 48)
    async with swarm_of(*THIRDS) as swarm, swarm.client() as client:
        async with client.session(await client.find_model(), max_tokens=64) as session:
            first = await session.step(rows[:40])
            state = session.supervisor.state
            (link,) = [link for link in state.links if link.ends.sender == state.primaries[1].id]
            hops(swarm)[1].report(LinkState(link.generation, "gone", "", 7))
            await until(lambda: len(session.failovers) == 2)
            rest = await session.step(rows[40:])
            assert session.exact
            assert swarm.servers[0].worker.stats.rows == 60
            assert swarm.servers[1].worker.stats.rows == 100
            assert swarm.servers[2].worker.stats.rows == 60
        async with client.session(await client.find_model(), max_tokens=64) as session:
            expected = await session.step(rows)
    assert torch.equal(torch.cat([first, rest]), expected)


@pytest.mark.parametrize("name", ["second to third", "third to client"])
async def test_a_cut_without_journals(swarm_of: SwarmMaker, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers that can keep no row once it was sent, since they have no memory for it, lose none either."""
    monkeypatch.setattr("shoal.server.hosting.span_loading.JOURNAL_SHARE", 0.0)
    rows = numbers(2, 300, 48)
    options = SessionOptions(max_tokens=320, prefill_chunk_rows=16)
    async with swarm_of(*THIRDS) as swarm, swarm.client() as client:
        async with client.session(await client.find_model(), options=options) as session:
            assert hops(swarm)[0].terms.journal_tokens == 0
            step = asyncio.ensure_future(session.step(rows))
            for position in (30, 90):
                await until(lambda at=position: step.done() or hops(swarm)[2].receiver.position > at)
                CUTS[name](session, hops(swarm))
            output = await step
        async with client.session(await client.find_model(), options=options) as session:
            assert torch.equal(output, await session.step(rows))


async def test_the_lease_ends_what_a_dead_client_left(swarm_of: SwarmMaker) -> None:
    """A client that vanishes holds its sessions and pages until the lease ends, and not longer."""
    async with swarm_of(*THIRDS) as swarm:
        client = await swarm.client().__aenter__()
        options = SessionOptions(max_tokens=64, keep_s=0.5)
        session = await client.open_session(await client.find_model(), options)
        await session.step(numbers(4, 5, 48))
        assert all(len(server.sessions) == 1 for server in swarm.servers)
        await session.supervisor.close(end=False)  # its connections end, and nothing is said
        await until(lambda: all(len(server.sessions) == 0 for server in swarm.servers))
        await until(
            lambda: all(server.status().free_tokens == server.status().total_tokens for server in swarm.servers)
        )
        await session.close()
        await client.close()
