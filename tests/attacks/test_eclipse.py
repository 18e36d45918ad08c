"""Crowds of made-up servers stand between a client and the honest ones: it finds these all the same."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import shoal
from shoal.swarm.directory.records import sign_record
from shoal.swarm.identity import Identity
from shoal.types import Span
from tests.attacks.crowds import FromAddress, Refuser, introduce_themselves, mute, promising, show
from tests.swarms import Swarm, SwarmMaker

SPANS = (Span(0, 2), Span(2, 4), Span(4, 5), Span(5, 6))
CAME, TOLD_OF = 40, 1000
SILENT_S, REFUSING_S = 5.0, 10.0
"""How long a reply may take among servers that answer nothing, and among such as refuse every session."""

ADDRESSES, KEYS_EACH = 20, 4
CLAIMING = 12


def reply(ticket: str, model: Path) -> tuple[list[int], float]:
    """Eight tokens of a new client with one ticket, and the seconds that it took."""
    began = time.monotonic()
    with shoal.connect(str(model), peers=[ticket], transport="tls") as remote:
        tokens = list(remote.generate("the sea", max_tokens=8, ignore_eos=True).token_ids)
    return tokens, time.monotonic() - began


@contextlib.asynccontextmanager
async def undisturbed(swarm_of: SwarmMaker, model: Path) -> AsyncIterator[tuple[Swarm, list[int]]]:
    """Four honest servers, each with a part of the model, and what they reply."""
    async with swarm_of(*SPANS) as swarm:
        tokens, _ = await asyncio.to_thread(reply, swarm.ticket, model)
        yield swarm, tokens


async def test_thousands_of_keys_that_answer_nothing(swarm_of: SwarmMaker, tiny_model: Path) -> None:
    """From one address, some introduce themselves and some are told of: the client's ticket is honest, and that is enough."""
    async with undisturbed(swarm_of, tiny_model) as (swarm, expected), mute("127.0.0.2") as port:
        keys = [Identity.generate() for _ in range(CAME + TOLD_OF)]
        for server in swarm.servers:
            await introduce_themselves(keys[:CAME], "127.0.0.2", port, server.record)
            records = [promising(key, server.record.model, [f"tls://127.0.0.2:{port}"]) for key in keys[CAME:]]
            signed = [sign_record(record, key).data for record, key in zip(records, keys[CAME:], strict=True)]
            teller = FromAddress(Identity.generate(), "127.0.0.2")
            await show(teller, server.record, signed)
            await teller.close()
        assert all(len(server.directory.records()) > TOLD_OF for server in swarm.servers)
        tokens, seconds = await asyncio.to_thread(reply, swarm.ticket, tiny_model)
    assert tokens == expected
    assert seconds <= SILENT_S


async def test_keys_of_many_addresses_that_refuse_every_session(swarm_of: SwarmMaker, tiny_model: Path) -> None:
    """They answer dials and promise everything; each costs a client no more than its refusal."""
    async with undisturbed(swarm_of, tiny_model) as (swarm, expected), contextlib.AsyncExitStack() as stack:
        model = swarm.servers[0].record.model
        crowd = []
        for number in range(ADDRESSES * KEYS_EACH):
            crowd.append(Refuser(f"127.0.0.{2 + number % ADDRESSES}", model, tiny_model.name))
            stack.push_async_callback(crowd[-1].close)
            await crowd[-1].begin([server.record for server in swarm.servers])
        tokens, seconds = await asyncio.to_thread(reply, swarm.ticket, tiny_model)
        assert sum(one.sessions_refused for one in crowd) > 0
    assert tokens == expected
    assert seconds <= REFUSING_S


async def test_refusing_keys_that_name_the_addresses_of_honest_servers(swarm_of: SwarmMaker, tiny_model: Path) -> None:
    """One address with many keys is one stranger: its second key is not tried before a server that has answered elsewhere."""
    async with undisturbed(swarm_of, tiny_model) as (swarm, expected), contextlib.AsyncExitStack() as stack:
        records = [server.record for server in swarm.servers]
        claims = [record.addresses[0] for record in records]
        crowd = []
        for _ in range(CLAIMING):
            crowd.append(Refuser("127.0.0.2", records[0].model, tiny_model.name, claims))
            stack.push_async_callback(crowd[-1].close)
            await crowd[-1].begin(records)
        tokens, _ = await asyncio.to_thread(reply, swarm.ticket, tiny_model)
        assert sum(one.sessions_refused for one in crowd) == 1
    assert tokens == expected


@pytest.mark.parametrize("told", [False, True], ids=["came", "told of"])
async def test_servers_stay_in_touch_among_made_up_ones(
    swarm_of: SwarmMaker, monkeypatch: pytest.MonkeyPatch, told: bool
) -> None:
    """Honest servers go on to exchange records with each other, whatever crowd is in their directories."""
    monkeypatch.setattr("shoal.server.gossip.EXCHANGE_S", 0.02)
    async with swarm_of(Span(0, 3), Span(3, 6)) as swarm:
        one, two = swarm.servers
        keys = [Identity.generate() for _ in range(300)]
        records = [promising(key, one.record.model, ["tls://127.0.0.2:1"]) for key in keys]
        for key, record in zip(keys, records, strict=True):
            data = sign_record(record, key).data
            for server in swarm.servers:
                server.directory.add(data, two.identity.peer if told else key.peer, network="127.0.0.2")
        async with asyncio.timeout(10):
            for _ in range(3):  # a renewed record arrives though fewer than one in a hundred of those known is honest
                one.span_host.announce()
                sequence = one.record.sequence
                while (held := two.directory.get(one.identity.peer)) is None or held.record.sequence < sequence:
                    await asyncio.sleep(0.01)
