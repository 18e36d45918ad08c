"""Servers of one model that hold it in different bits: they share routes, say what they have, and heal among equals."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import torch

import shoal
from shoal.cli.status import model_views
from shoal.client.client import AsyncClient
from shoal.client.client_options import SessionOptions
from shoal.client.session.session import Session
from shoal.engine.proof import numbers
from shoal.errors import NoRoute
from shoal.model.kernels.quantized import BITS
from shoal.model.weights.checkpoint import fingerprint
from shoal.model.weights.model_source import open_checkpoint
from shoal.server.server import Server
from shoal.swarm.routing.route_options import RouteOptions
from shoal.types import Span
from tests.integration.test_healing import ROWS, die, disturbed, undisturbed
from tests.parity.test_quantized_layers import Pair
from tests.swarms import Swarm, SwarmMaker, until

FIRST, SECOND, THIRD = Span(0, 2), Span(2, 4), Span(4, 6)
GREEDY = {"max_tokens": 24, "ignore_eos": True}
PROMPT = "the sea, the sea"


@contextlib.asynccontextmanager
async def mixed(swarm_of: SwarmMaker) -> AsyncIterator[Swarm]:
    """One server in floats, one of 8 bits, one of 4, each with a third of the blocks."""
    async with swarm_of(FIRST) as swarm:
        await swarm.join(SECOND, quantize=8)
        await swarm.join(THIRD, quantize=4)
        yield swarm


async def all_known(swarm: Swarm) -> None:
    """Each server knows that all serve: a client chooses among those that it is told of."""

    def serving(server: Server) -> int:
        return sum(not signed.record.draining for signed in server.directory.records())

    await until(lambda: all(serving(server) == len(swarm.servers) for server in swarm.servers), timeout_s=20.0)


async def test_three_widths_in_one_route(swarm_of: SwarmMaker) -> None:
    """The same tokens again and again; everybody's bits are seen, and a quality where there is one to tell."""
    async with mixed(swarm_of) as swarm:
        assert len({server.record.model.fingerprint for server in swarm.servers}) == 1
        async with await shoal.connect_async(peers=[swarm.ticket], transport="tls") as model:
            first, again = [await model.generate(PROMPT, **GREEDY) for _ in range(2)]
        assert first.token_ids == again.token_ids
        assert len(first.token_ids) == 24
        assert [hop.name for hop in first.route] == ["server 0", "server 1", "server 2"]
        assert first.exact
        async with swarm.client() as client:
            [view] = model_views(await client.status())
    told = {one.name: (one.bits_per_weight, one.kl_nats) for one in view.servers}
    assert told["server 0"] == (32.0, 0.0)
    assert [told[name][1] for name in ("server 1", "server 2")] == [None, None]
    assert 8 < (told["server 1"][0] or 0) < 8.5  # codes, and scales of whatever form
    assert 4 < (told["server 2"][0] or 0) < 4.5


@pytest.mark.skipif(3 not in BITS, reason="no kernel here computes with codes of 3 bits")
async def test_eight_four_and_three_bits(swarm_of: SwarmMaker) -> None:
    """In one route; a client may demand what the least of them has, and no more."""
    async with swarm_of(FIRST, quantize=8) as swarm:
        await swarm.join(SECOND, quantize=4)
        await swarm.join(THIRD, quantize=3)
        async with await shoal.connect_async(peers=[swarm.ticket], transport="tls", min_bits=3) as model:
            reply = await model.generate(PROMPT, **GREEDY)
            assert len(reply.token_ids) == 24
            assert [hop.name for hop in reply.route] == ["server 0", "server 1", "server 2"]
            with pytest.raises(NoRoute, match=r"min_bits demands 4 bits per weight: server 2 says 3\.\d"):
                await model.generate(PROMPT, **GREEDY, min_bits=4, wait_s=0.2)
        assert [int(server.record.bits_per_weight) for server in swarm.servers] == [8, 4, 3]


async def test_a_demand_that_the_swarm_does_not_meet(swarm_of: SwarmMaker) -> None:
    """The error says what was demanded and what the servers of those blocks say, by name; a lower floor is met."""
    async with mixed(swarm_of) as swarm:
        async with await shoal.connect_async(peers=[swarm.ticket], transport="tls", min_bits=8) as model:
            with pytest.raises(NoRoute, match="4:6 are only on servers that are excluded by min_bits") as caught:
                await model.generate(PROMPT, **GREEDY, wait_s=0.2)
            assert "min_bits demands 8 bits per weight: server 2 says 4." in str(caught.value)
            assert "server 1" not in str(caught.value)
            assert len((await model.generate(PROMPT, **GREEDY, min_bits=4)).token_ids) == 24
            with pytest.raises(NoRoute) as caught:
                await model.generate(PROMPT, **GREEDY, min_bits=0, max_kl=0.1, wait_s=0.2)
        assert caught.value.missing == ((2, 6),)
        assert "max_kl demands 0.1 nats at most: server 1 does not say, server 2 does not say" in str(caught.value)


@pytest.mark.parametrize("joining", [(4, 8), (8, 4)])
async def test_tokens_after_a_repair_are_those_without_one(swarm_of: SwarmMaker, joining: tuple[int, int]) -> None:
    """The middle one of three widths dies: its equal takes the blocks, and not the server of fewer bits."""
    async with mixed(swarm_of) as swarm:
        expected = await undisturbed(swarm)

        async def kill(session: Session) -> None:
            for bits in joining:
                await swarm.join(SECOND, quantize=bits)
            await all_known(swarm)
            await die(swarm.servers[1])

        output, session = await disturbed(swarm, 30, kill)
        equal = swarm.servers[3 + joining.index(8)]
        assert [hop.peer for hop in session.route][1] == equal.identity.peer
    assert torch.equal(output, expected)
    assert session.exact


@pytest.mark.parametrize("floor", [8.0, 0.0])
async def test_a_repair_keeps_the_floor(swarm_of: SwarmMaker, floor: float) -> None:
    """Where only a server below it is left, the step waits and says so; without a floor the reply goes on, and is marked."""
    async with swarm_of(FIRST, Span(2, 6), quantize=8) as swarm, AsyncClient([swarm.ticket], only="tls") as client:
        options = SessionOptions(max_tokens=64, patience_s=0.3 if floor else 10.0, route=RouteOptions(min_bits=floor))
        async with client.session(await client.find_model(), options=options) as session:
            await session.step(ROWS[:20])
            await swarm.join(FIRST, quantize=4)
            await all_known(swarm)
            await die(swarm.servers[0])
            if floor:
                with pytest.raises(NoRoute, match=r"min_bits demands 8 bits per weight: server 2 says 4\.\d"):
                    await session.step(ROWS[20:])
            else:
                await session.step(ROWS[20:])
                assert not session.exact


async def test_a_quantized_file_serves_in_its_bases_swarm(tmp_path: Path, swarm_of: SwarmMaker) -> None:
    """By its note, or by its server's word: one route through both, and what was measured is told."""
    pair = Pair(tmp_path, "exl2", tied=True)
    base = open_checkpoint(str(pair.plain))
    note = {"base_fingerprint": fingerprint(base), "kl": 0.031, "layers": []}
    by_word, by_note = pair.packed, tmp_path / "made"
    by_note.mkdir()
    for file in by_word.iterdir():
        (by_note / file.name).write_bytes(file.read_bytes())
    (by_note / "quantization.json").write_text(json.dumps(note))
    async with swarm_of(Span(0, 1), model=str(pair.plain)) as swarm:
        await swarm.join(Span(1, 2), model=str(by_note))
        await swarm.join(Span(2, 3), model=str(by_word), base=str(pair.plain))
        records = [server.record for server in swarm.servers]
        assert {record.model.checkpoint for record in records} == {records[0].model.checkpoint}
        assert [record.kl_nats for record in records] == [0.0, 0.031, None]
        assert records[0].bits_per_weight == 32
        assert all(3 < record.bits_per_weight < 5 for record in records[1:])
        async with AsyncClient([swarm.ticket], only="tls") as client:
            spec = await client.find_model(fingerprint=fingerprint(base))
            async with client.session(spec, max_tokens=16) as session:
                assert (await session.step(numbers(1, 5, 64))).shape == (5, 64)
                assert [hop.span for hop in session.route] == [Span(0, 1), Span(1, 2), Span(2, 3)]
            description, _ = await client.describe(spec)
        assert description.fingerprint == fingerprint(base)
    async with swarm_of(Span(0, 1), model=str(by_word)) as alone:
        assert alone.servers[0].record.model.fingerprint != fingerprint(base)
