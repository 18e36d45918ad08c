"""What strangers say of a model, and what the members say that a client was told of."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from shoal.client.served_models import ServedModels
from shoal.client.server_probe import ServerProbe
from shoal.errors import FingerprintMismatch, NoRoute
from shoal.swarm.identity import Identity
from shoal.transport.dialler import Dialler
from shoal.transport.memory_transport import MemoryTransport
from shoal.types import ModelSpec, Span
from tests.records import FINGERPRINT, signed_record
from tests.unit.client.test_client import MODEL, Member, MemorySwarm, opened

OTHER = ModelSpec("tiny", "ab" * 16, 12, 48)
SHORT = msgspec.structs.replace(MODEL, num_blocks=1)
ELSE = ModelSpec("else", "cd" * 16, 3, 16)


def hearsay(member: Member, swarm: MemorySwarm, model: ModelSpec) -> None:
    """A record of a node that is not there reaches a member."""
    now = swarm.clock.wall()
    span = Span(0, model.num_blocks)
    times = {"issued_at": now, "expires_at": now + 300.0}
    signed = signed_record(Identity.generate(), ("memory://nobody",), model=model, span=span, **times)
    assert member.directory.add(signed.data)


async def models_of(swarm: MemorySwarm, *heard_of: Member) -> ServedModels:
    """As a client has them that was given no ticket: it has met somebody who told it of these members."""
    node = await swarm.member(None)
    for member in heard_of:
        for signed in member.directory.records():
            node.directory.add(signed.data)
    transport = MemoryTransport(Identity.generate().peer, swarm.network)
    dialler = Dialler([transport], clock=swarm.clock)
    probe = ServerProbe(node.directory, dialler, swarm.clock)

    async def refresh() -> None:
        pass

    return ServedModels(node.directory, dialler, probe, frozenset(), refresh, swarm.clock)


@pytest.mark.parametrize("lie", [OTHER, SHORT, ELSE], ids=["another checkpoint", "one block", "another model"])
async def test_what_a_tickets_member_serves_is_the_model(lie: ModelSpec) -> None:
    """Whatever records of strangers say beside it."""
    swarm = MemorySwarm()
    member = await swarm.member()
    for _ in range(4):
        hearsay(member, swarm, lie)
    async with opened(swarm, member) as client:
        assert await client.find_model() == MODEL
        assert await client.find_model("tiny") == MODEL
        assert await client.find_model(fingerprint=FINGERPRINT) == MODEL
        assert [one.fingerprint for one in await client.descriptions()] == [FINGERPRINT]
        await client.wait_for(MODEL, wait_s=0.0)


@pytest.mark.parametrize("lie", [OTHER, SHORT, ELSE], ids=["another checkpoint", "one block", "another model"])
async def test_without_a_ticket_those_count_who_answer(lie: ModelSpec) -> None:
    """A record with nothing behind it settles nothing."""
    swarm = MemorySwarm()
    member = await swarm.member()
    hearsay(member, swarm, lie)
    models = await models_of(swarm, member)
    async with asyncio.timeout(20):
        assert await models.find(None, None, 0.0) == MODEL
        assert [one.fingerprint for one in await models.descriptions(0.0)] == [FINGERPRINT]


async def test_two_models_that_are_served_are_told_apart_by_the_user() -> None:
    """Neither is taken by chance."""
    swarm = MemorySwarm()
    models = await models_of(swarm, await swarm.member(), await swarm.member(OTHER))
    with pytest.raises(FingerprintMismatch, match="give the checkpoint"):
        await models.find(None, None, 0.0)
    assert {one.fingerprint for one in await models.descriptions(0.0)} == {FINGERPRINT, OTHER.fingerprint}


async def test_a_checkpoint_at_hand_is_waited_for() -> None:
    """Servers of another one under its name end the wait at once only where a ticket names them."""
    swarm = MemorySwarm()
    member = await swarm.member(OTHER)
    async with opened(swarm, member) as client:
        with pytest.raises(FingerprintMismatch, match="this side's tiny"):
            await client.wait_for(MODEL, wait_s=1000.0)
    models = await models_of(swarm, member)
    with pytest.raises(FingerprintMismatch, match="this side's tiny"):
        await models.wait_for(MODEL, 0.0)
    short = await models_of(swarm, await swarm.member(SHORT))
    with pytest.raises(NoRoute, match="no server of the swarm serves tiny"):
        await short.wait_for(MODEL, 0.0)


async def test_a_server_describes_what_it_was_asked_for() -> None:
    """One that describes something else has said nothing."""
    swarm = MemorySwarm()
    member = await swarm.member()
    member.describes = OTHER.fingerprint
    async with opened(swarm, member) as client:
        with pytest.raises(NoRoute, match="describes another model"):
            await client.descriptions()
