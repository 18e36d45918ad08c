"""Each lie of a hop beside an honest server, over TLS on loopback: the right rows; `bench attacks` says what a lie costs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import torch

from shoal.client.client import AsyncClient
from shoal.client.client_options import SessionOptions
from shoal.client.session.session import Session
from shoal.engine.proof import numbers
from shoal.errors import NoRoute
from shoal.server.serve_options import ServeOptions
from shoal.server.server import Server
from shoal.types import Span
from tests.attacks.hostile_server import LAST, LIES, NOT_ALONE, NOT_FIRST, Lie, lying
from tests.swarms import Swarm, SwarmMaker

ALL, FIRST, SECOND = Span(0, 6), Span(0, 3), Span(3, 6)
PROMPT_ROWS, TOKENS = 40, 12
ROWS = numbers(7, PROMPT_ROWS + TOKENS, 48)
OPTIONS = SessionOptions(max_tokens=64, prefill_chunk_rows=16)

EVERYWHERE = os.environ.get("SHOAL_ATTACKS") == "all"
"""Whether each lie is told in every place of a route; otherwise to the client, if it can be told there."""


@contextlib.asynccontextmanager
async def hostile(model: Path, swarm: Swarm, span: Span, lie: Lie) -> AsyncIterator[Server]:
    """A server that lies."""
    options = ServeOptions(
        model=str(model), blocks=span, peers=(swarm.ticket,), name="liar", transport="tls", memory_bytes=128 << 20
    )
    async with Server(options, wrap=lying(lie)) as server:
        yield server


async def outputs(session: Session) -> torch.Tensor:
    """Of a prompt, and then row by row, the last of the prompt's and all others."""
    parts = [await session.step(ROWS[:PROMPT_ROWS], reply=1)]
    for position in range(PROMPT_ROWS, PROMPT_ROWS + TOKENS):
        parts.append(await session.step(ROWS[position : position + 1]))
    return torch.cat(parts)


async def undisturbed(swarm: Swarm) -> torch.Tensor:
    """What comes out when nobody lies."""
    async with swarm.client() as client:
        spec = await client.find_model()
        async with client.session(spec, options=OPTIONS) as session:
            return await outputs(session)


async def check(model: Path, swarm: Swarm, span: Span, lie: Lie) -> None:
    """A session that begins at the liar gets the right rows, and ends elsewhere."""
    expected = await undisturbed(swarm)
    async with hostile(model, swarm, span, lie) as liar:
        async with AsyncClient([liar.ticket, swarm.ticket], only="tls") as client:
            spec = await client.find_model()
            for honest in swarm.servers:
                client.caught(honest.record)  # so that the liar is taken first
            async with client.session(spec, options=OPTIONS) as session:
                found = await outputs(session)
                story = [(event.reason, event.lost, event.found) for event in session.failovers]
                assert torch.equal(found, expected), story
                assert liar.identity.peer not in {hop.peer for hop in session.route}, story
                assert lie.begun or lie.at_once, "nobody asked the liar"


@pytest.mark.parametrize("name", [name for name in LIES if name not in NOT_ALONE])
async def test_a_hop_that_lies_to_its_client(swarm_of: SwarmMaker, tiny_model: Path, name: str) -> None:
    """The only hop of a route."""
    async with swarm_of(ALL) as swarm:
        await check(tiny_model, swarm, ALL, LIES[name]())


@pytest.mark.parametrize("name", [name for name in LIES if name not in NOT_FIRST and (EVERYWHERE or name in NOT_ALONE)])
async def test_a_hop_that_lies_to_the_next_one(swarm_of: SwarmMaker, tiny_model: Path, name: str) -> None:
    """The honest hop behind it keeps its place, or gets it again."""
    async with swarm_of(FIRST, SECOND) as swarm:
        await check(tiny_model, swarm, FIRST, LIES[name]())


@pytest.mark.parametrize("name", LAST)
async def test_a_hop_that_lies_to_the_one_before(swarm_of: SwarmMaker, tiny_model: Path, name: str) -> None:
    """The last hop: the honest one before it is not blamed for good."""
    async with swarm_of(FIRST, SECOND) as swarm:
        await check(tiny_model, swarm, SECOND, LIES[name]())


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("rows of NaN", "liar: rows .* not finite"),
        ("mute", "liar: liar answers, but no rows come"),
        ("idle", "liar: liar beats but does not compute"),
        ("rows left out", "liar: 1 rows came with 1 of them left out"),
        ("fenced", "liar: .*a later process has it"),
    ],
)
async def test_where_no_other_server_is_left(swarm_of: SwarmMaker, tiny_model: Path, name: str, says: str) -> None:
    """The error says which server did what, when patience is over."""
    options = SessionOptions(max_tokens=64, prefill_chunk_rows=16, patience_s=0.5)
    async with swarm_of(SECOND) as swarm, hostile(tiny_model, swarm, FIRST, LIES[name]()) as liar:
        async with AsyncClient([liar.ticket], only="tls") as client:
            async with client.session(await client.find_model(), options=options) as session:
                with pytest.raises(NoRoute, match=says):
                    await outputs(session)
